"""NVIDIA GPUs: PyTorch's memory and kernels, NVIDIA's libraries and our own kernels."""
