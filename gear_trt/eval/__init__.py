"""What a compressed cache costs a real model: quality beside the uncompressed cache and peers."""
