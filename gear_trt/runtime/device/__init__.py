"""Steps on a GPU, whoever runs the graph: device memory, padding, CUDA graphs, logits."""
