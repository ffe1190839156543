"""The Gaussian kernel between two sets of tokens, written out."""

from torch import Tensor

from softattn.backends.selection import select_backend
from softattn.common.precision import promoted_under_autocast, without_autocast
from softattn.common.validation import check_tokens, scale_of


def gaussian_kernel(
    query: Tensor, key: Tensor, *, scale: float | None = None, impl: str = "auto"
) -> Tensor:
    """The block k(x, y) = exp(−s ‖x − y‖² / 2) of all pairs (SOFT, NeurIPS 2021).

    Distances are computed from differences, not from products, so the block of a set with itself
    has ones on its diagonal, is symmetric and is positive semidefinite up to rounding.

    Args:
        query: (batch, heads, n_q, d), floating point.
        key: (batch, heads, n_k, d), same dtype and device.
        scale: s, 1/√d by default.
        impl: ``"eager"``, ``"triton"`` or ``"auto"``, see ``softmax_free_attention``.

    Returns:
        (batch, heads, n_q, n_k) in float32, or float64 for float64 inputs. It is whole in memory:
        for attention over many tokens use ``softmax_free_attention``.

    Raises:
        TypeError: a tensor is not floating point, or dtypes differ.
        ValueError: shapes do not fit, devices differ, or ``impl`` cannot run.
    """
    check_tokens(query=query, key=key)
    query, key = promoted_under_autocast(query, key)
    backend = select_backend(impl, query)
    with without_autocast(query.device):
        return backend.gram(query, key, scale_of(scale, query))
