"""Every operator of the graph by PyTorch's own functions, on whatever device its tensors are."""
