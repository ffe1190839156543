"""Swaps the attention of a pretrained text encoder and teaches it to answer as it did."""
