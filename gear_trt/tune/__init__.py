"""Which layers need many bits and which do not: measured on a model, then solved for a target."""
