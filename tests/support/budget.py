"""The one assertion about numbers: an error budget drawn from the data."""

import torch
from torch import Tensor

# Options of ``torch.testing.assert_close``: bit for bit, but for the signs of zeros.
EXACT = {"rtol": 0, "atol": 0}


def assert_within_budget(
    actual: Tensor,
    truth: Tensor,
    *,
    baseline: Tensor,
    magnitude: Tensor | float | None = None,
    inherited: Tensor | float = 0.0,
) -> None:
    """Asserts that ``actual`` errs at most twice as much as ``baseline``, plus rounding.

    Args:
        actual: what is tested.
        truth: the same in float64.
        baseline: the same by the plain formula in the dtype of ``actual``; where it is not finite,
            only rounding is allowed.
        magnitude: size of the terms that cancel on the way, by default that of ``truth``. The
            rounding band is 16 ε of it, with ε that of the arithmetic (float32 for half precision),
            and 16 ε of the largest entry of ``truth``, with ε that of the result.
        inherited: error of what ``actual`` is computed from.
    """
    assert actual.dtype == baseline.dtype, f"dtype {actual.dtype}, expected {baseline.dtype}"
    assert actual.shape == truth.shape, (
        f"shape {tuple(actual.shape)}, expected {tuple(truth.shape)}"
    )
    assert actual.shape == baseline.shape
    assert torch.isfinite(truth).all(), "the truth itself is not finite"
    if truth.numel() == 0:
        return
    assert torch.isfinite(actual).all(), "not finite where the truth is"
    error = (actual.double() - truth).abs().amax()
    allowed = (baseline.double() - truth).abs().amax()
    if not allowed.isfinite():
        allowed = torch.tensor(0.0)  # the plain formula underflows where rows are not shifted
    size = truth.abs().amax()
    terms = size if magnitude is None else torch.as_tensor(magnitude).double().abs().amax()
    arithmetic = torch.finfo(torch.promote_types(actual.dtype, torch.float32)).eps
    band = 16 * (arithmetic * terms + torch.finfo(actual.dtype).eps * size)
    band += torch.as_tensor(inherited).double()
    assert error <= 2 * allowed + band, (
        f"error {error:.3g} is over the budget: twice the plain formula's {allowed:.3g} and a "
        f"rounding band of {band:.3g}"
    )
