"""A layer over sequences of different lengths."""
