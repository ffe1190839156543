"""Softmax-free attention in models of other libraries. Import each module by its name."""
