"""TensorRT and TensorRT-RTX engines: checked, loaded, and run step by step."""
