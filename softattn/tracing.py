"""Which compiler traces a call."""

import torch


def is_compiled() -> bool:
    """Whether ``torch.compile`` traces the call."""
    return torch.compiler.is_dynamo_compiling() and not torch.compiler.is_exporting()


def is_exported() -> bool:
    """Whether ``torch.export`` does, whose graphs run where softattn is not installed."""
    return torch.compiler.is_compiling() and not is_compiled()
