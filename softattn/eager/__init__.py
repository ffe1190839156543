"""The operators in PyTorch's own operations, on any device."""
