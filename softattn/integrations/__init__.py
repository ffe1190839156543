"""Softmax-free attention in other libraries' models, each module imported where it is asked for."""
