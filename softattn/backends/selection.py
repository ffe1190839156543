"""The choice of a backend, and the reason for it."""

import os
from importlib.util import find_spec
from typing import NamedTuple

import torch
from torch import Tensor

from softattn.backends.backend import EAGER, TRITON, Backend
from softattn.common.validation import IMPLEMENTATIONS, check_choice
from softattn.triton.newton import most_rows_to_invert

# The most that a tile of the kernels holds.
MOST_FEATURES = 256
MOST_LANDMARKS = 1024
# The kernels of near fields hold all landmarks in one tile: features up to, landmarks.
_MOST_OF_NEAR_FIELDS_IN_HALF = {64: 128, 128: 64}
MOST_OF_NEAR_FIELDS = {
    torch.float32: {64: 64},
    torch.bfloat16: _MOST_OF_NEAR_FIELDS_IN_HALF,
    torch.float16: _MOST_OF_NEAR_FIELDS_IN_HALF,
}

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_TRITON_INSTALLED = find_spec("triton") is not None


class Implementation(NamedTuple):
    """What a call runs on.

    Attributes:
        name: ``"eager"`` or ``"triton"``.
        reason: why.
    """

    name: str
    reason: str


def explain_impl(
    query: Tensor,
    value: Tensor | None = None,
    landmarks: Tensor | None = None,
    impl: str = "auto",
    near_field: int = 1,
) -> Implementation:
    """What a call with these tensors runs on, and why.

    Args:
        query: of the call, (batch, heads, n, d).
        value: of the call, (batch, heads, n, d_v), where it has one.
        landmarks: of the call, (batch, heads, m, d), where it has them.
        impl: as in the call.
        near_field: as in the call.

    Returns:
        The name of the implementation, ``"eager"`` or ``"triton"``, and the reason. It does not
        raise where the call would: then the reason says why ``impl`` cannot run.

    Examples:
        >>> choice = explain_impl(torch.randn(1, 2, 100, 32))
        >>> choice.name
        'eager'
        >>> choice.reason
        'the tensors are on cpu, Triton runs on CUDA and ROCm'
    """
    check_choice("impl", impl, IMPLEMENTATIONS)
    if impl == "eager":
        return Implementation("eager", "impl='eager' was asked for")
    obstacle = (
        _against_device(query.device, impl)
        or _against_dtype(query.dtype)
        or _against_sizes(query, value, landmarks, near_field)
    )
    if obstacle is not None:
        return Implementation("eager", obstacle)
    return Implementation("triton", "device, dtype and sizes are what the kernels are made for")


def select_backend(
    impl: str,
    query: Tensor,
    value: Tensor | None = None,
    landmarks: Tensor | None = None,
    near_field: int = 1,
) -> Backend:
    """The backend of a call.

    Raises:
        ValueError: ``impl`` is unknown, or ``"triton"`` and cannot run.
    """
    choice = explain_impl(query, value, landmarks, impl, near_field)
    obstacle = choice.reason if choice.name == "eager" else None
    on_triton = _granted(impl, obstacle)
    return TRITON if on_triton else EAGER


def newton_runs_on_triton(
    impl: str, a: Tensor, *, iterations: int | None, through_steps: bool, obstacle: str | None
) -> bool:
    """Whether a Newton inverse of ``a`` (..., rows, columns) runs on Triton.

    Args:
        impl: as in the call.
        a: the matrices.
        iterations: as in the call.
        through_steps: whether the gradient goes through the steps.
        obstacle: why the method has no kernel, or None where it has one.

    Raises:
        ValueError: ``impl`` is unknown, or ``"triton"`` and cannot run.
    """
    check_choice("impl", impl, IMPLEMENTATIONS)
    if impl == "eager":
        return False
    if impl == "auto" and through_steps and a.requires_grad and torch.is_grad_enabled():
        # Matrix products can be differentiated again.
        return False
    # The limit on rows comes last: it imports Triton.
    obstacle = (
        _against_device(a.device, impl)
        or _against_dtype(a.dtype)
        or obstacle
        or _against_rows(a.shape[-1])
    )
    if obstacle is None and iterations == 0:
        obstacle = "there are no iterations to run"
    return _granted(impl, obstacle)


def _against_rows(rows: int) -> str | None:
    most = most_rows_to_invert()
    if rows <= most:
        return None
    return f"the matrices have {rows} rows, the kernel holds {most} at most"


def _granted(impl: str, obstacle: str | None) -> bool:
    if impl == "triton" and obstacle is not None:
        raise ValueError(
            f"impl='triton' was asked for, but {obstacle}; use impl='eager', or 'auto' to get the "
            "fastest that runs"
        )
    return obstacle is None and impl != "eager"


def _against_device(device: torch.device, impl: str) -> str | None:
    if not _TRITON_INSTALLED:
        return "the package triton is not installed"
    if device.type != "cuda":
        if impl == "triton" and os.environ.get("TRITON_INTERPRET") == "1":
            return None
        return f"the tensors are on {device.type}, Triton runs on CUDA and ROCm"
    if torch.version.hip is None and torch.cuda.get_device_properties(device).major < 8:
        return "the device's compute capability is below 8.0"
    return None


def _against_dtype(dtype: torch.dtype) -> str | None:
    if dtype in _DTYPES:
        return None
    return f"the kernels compute in float32, which is too little for {dtype}"


def _against_sizes(
    query: Tensor, value: Tensor | None, landmarks: Tensor | None, near_field: int
) -> str | None:
    features = max(query.shape[-1], 0 if value is None else value.shape[-1])
    kernels, most = "the kernels", {MOST_FEATURES: MOST_LANDMARKS}
    if near_field > 1:
        kernels, most = "the kernels of near fields", MOST_OF_NEAR_FIELDS[query.dtype]
    if features > max(most):
        return f"a head has {features} features, {kernels} take {max(most)} at most"
    most_landmarks = next(number for width, number in most.items() if features <= width)
    if landmarks is not None and landmarks.shape[-2] > most_landmarks:
        return f"there are {landmarks.shape[-2]} landmarks, {kernels} take {most_landmarks} at most"
    return None
