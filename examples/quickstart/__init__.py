"""Softmax-free attention on a photograph and on handwritten digits: ``make demo``."""
