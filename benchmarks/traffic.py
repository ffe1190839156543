"""The bytes that softmax-free attention must move, whose time is the limit of its speed.

Counted per token, feature, batch item and head, with as many features of values as of queries:

    forward     Q and V are read for S = Pᵀ V; Q is read and O written for O = P W           4
    backward    Q and dO are read for dW; Q, V and dO are read and dQ and dV written         7

"token" reads V once more forward, for its exact diagonal, and V and O once more backward. Arrays
of m × m and m × d do not grow with n and are left out.
"""

from benchmarks.arguments import DTYPES
from benchmarks.workload import Workload

_FORWARD_ELEMENTS = {"none": 4, "landmark": 4, "token": 5}
_BACKWARD_ELEMENTS = {"none": 7, "landmark": 7, "token": 9}


def traffic_elements(normalization: str, mode: str) -> int:
    """Elements read and written per token, feature, batch item and head in one call."""
    elements = _FORWARD_ELEMENTS[normalization]
    if mode == "forward+backward":
        elements += _BACKWARD_ELEMENTS[normalization]
    return elements


def traffic_bytes(workload: Workload, mode: str) -> int:
    """Bytes that one call of softattn's self-attention must read and write."""
    features = workload.batch * workload.heads * workload.tokens * workload.head_dim
    elements = traffic_elements(workload.normalization, mode) * features
    return elements * DTYPES[workload.dtype].itemsize
