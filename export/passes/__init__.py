"""One pass per file: normalize → find_kv → route_kv → attach → verify."""
