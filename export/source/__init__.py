"""What can be exported: ONNX files, Hugging Face folders, GGUF files."""
