"""The elements that softmax-free self-attention must move: its traffic limits its speed.

Counted per token, feature, batch item and head, with as many features of values as of queries:

    forward     Q and V are read for S = Pᵀ V; Q is read and O written for O = P W           4
    backward    Q and dO are read for dW; Q, V and dO are read and dQ and dV written         7

"token" also reads V once more forward, for its exact diagonal, and V and O once more backward.
"softmax" reads Q a third time forward: the weights of the keys are divided by the largest.
Arrays of m × m and m × d do not grow with n and are left out.
"""

_FORWARD_ELEMENTS = {"token": 5, "softmax": 6, "landmark": 4, "none": 4}
_BACKWARD_ELEMENTS = {"token": 9, "softmax": 9, "landmark": 7, "none": 7}
NORMALIZATIONS = tuple(_FORWARD_ELEMENTS)


def traffic_elements(normalization: str, mode: str) -> int:
    """Elements read and written per token, feature, batch item and head in one call."""
    elements = _FORWARD_ELEMENTS[normalization]
    if mode == "forward+backward":
        elements += _BACKWARD_ELEMENTS[normalization]
    return elements
