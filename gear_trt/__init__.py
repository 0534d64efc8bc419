"""Compressed KV caches (GEAR, arXiv 2403.05527) inside ONNX Runtime and TensorRT engines."""
