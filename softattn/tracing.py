"""Which compiler traces a call."""

import torch
from torch.torch_version import TorchVersion

# The Dynamo of 2.6 does not trace what settles a symbol.
_CAN_SETTLE_SYMBOLS = TorchVersion(torch.__version__) >= "2.7"


def is_compiled() -> bool:
    """Whether ``torch.compile`` traces the call."""
    return torch.compiler.is_dynamo_compiling() and not torch.compiler.is_exporting()


def is_exported() -> bool:
    """Whether ``torch.export`` does, whose graphs run where softattn is not installed."""
    return torch.compiler.is_compiling() and not is_compiled()


def settles_symbols() -> bool:
    """Whether a compiler traces the call that can put numbers for its symbols."""
    return _CAN_SETTLE_SYMBOLS and torch.compiler.is_compiling()
