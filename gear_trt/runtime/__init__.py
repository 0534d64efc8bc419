"""From an engine folder to tokens: manifest, backends, cache, step → stream → generate."""
