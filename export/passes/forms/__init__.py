"""One file per way in which a graph writes attention with a KV cache."""
