"""Measurements: scripts here, recorded rows in `results/`."""
