"""Triton kernels, installed as ``softattn.kernels``. This version ships none yet."""
