"""Benchmarks that anyone can run: the operator and whole models, beside their peers."""
