"""The weights of keys for ``normalization="softmax"``, and their gradient, in two launches each."""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from softattn.kernels import configurations, launching
from softattn.kernels.arithmetic import load_rows, store_rows, without_padding
from softattn.kernels.launching import (
    CHANGING,
    block_of,
    ceil_div,
    empty_rows,
    padding_argument,
    rows_argument,
)

_CONFIGURATION = configurations.Configuration(tokens=64, landmarks=0, warps=4, stages=1)
# Parts of the keys of a pair. Every program of the second launch reads what all parts found.
_MOST_PARTS = 256


class KeyWeights(NamedTuple):
    """What ``key_weights`` computes, in float32.

    weights: w, (batch, heads, n).
    logarithms: λ, likewise; undefined for padding.
    bounds: the least and the largest λ, (batch, heads, 2).
    """

    weights: Tensor
    logarithms: Tensor
    bounds: Tensor


def key_weights(
    keys: Tensor, *, scale: float, largest_range: float, padding: Tensor | None = None
) -> KeyWeights:
    """w_j = exp(τ (λ_j − λ_max)) with λ_j = s ‖k_j‖² / 2 and τ = R / max(λ_max − λ_min, R).

    Args:
        keys: K, (batch, heads, n, d).
        scale: s.
        largest_range: R.
        padding: (batch, n), True at padded keys, which weigh 0 and set no bound.
    """
    batch, heads, n, _ = keys.shape
    weights, logarithms = (
        torch.empty((batch, heads, n), device=keys.device, dtype=torch.float32) for _ in range(2)
    )
    of_parts, bounds = (
        torch.empty((batch, heads, *shape), device=keys.device, dtype=torch.float32)
        for shape in ((_MOST_PARTS, 2), (2,))
    )
    grid, parts = _parts(keys, padding)
    parts |= {"logarithm_ptr": logarithms, "part_bound_ptr": of_parts}
    of_norms = parts | _points(keys, scale)
    # The bounds must be equal to stored logarithms, or their gradient finds no key.
    launching.launch(_log_weights, grid, of_norms, _CONFIGURATION, fuse=False)
    of_weights = parts | {
        "weight_ptr": weights,
        "bound_ptr": bounds,
        "largest_range": largest_range,
    }
    launching.launch(_key_weights, grid, of_weights, _CONFIGURATION)
    return KeyWeights(weights, logarithms, bounds)


def key_weights_gradient(
    grad: Tensor,
    keys: Tensor,
    computed: KeyWeights,
    *,
    scale: float,
    largest_range: float,
    padding: Tensor | None = None,
    grad_keys: Tensor | None = None,
) -> Tensor:
    """dK_j = s dλ_j k_j of ``key_weights``.

    dλ_j = τ w_j dw_j, and the largest and the least λ also get theirs through τ and λ_max; keys
    that tie share it.

    Args:
        grad: dw, (batch, heads, n), float32.
        keys: as in ``key_weights``.
        computed: what it returned.
        scale: as in ``key_weights``.
        largest_range: likewise.
        padding: likewise; the gradient of padded keys is 0.
        grad_keys: (batch, heads, n, d), added to dK, 0 at padded keys; None is 0.

    Returns:
        (batch, heads, n, d), in the dtype of the keys and stored as they are.
    """
    batch, heads, _, d = keys.shape
    result = empty_rows(d, keys)
    sums = torch.empty((batch, heads, _MOST_PARTS, 4), device=keys.device, dtype=torch.float32)
    grid, parts = _parts(keys, padding)
    parts |= {
        "grad_ptr": grad.contiguous(),
        "weight_ptr": computed.weights,
        "logarithm_ptr": computed.logarithms,
        "bound_ptr": computed.bounds,
        "sums_ptr": sums,
    }
    launching.launch(_weight_gradient_sums, grid, parts, _CONFIGURATION)
    of_keys = parts | _points(keys, scale)
    of_keys |= rows_argument("other", grad_keys) | rows_argument("dx", result)
    of_keys["largest_range"] = largest_range
    launching.launch(_key_weights_gradient, grid, of_keys, _CONFIGURATION)
    return result


def _parts(keys: Tensor, padding: Tensor | None) -> tuple[tuple[int], dict[str, object]]:
    """A grid with a program for each part of the keys, and the arguments of all kernels below."""
    batch, heads, n, _ = keys.shape
    tiles = ceil_div(n, _CONFIGURATION.tokens)
    length = max(ceil_div(tiles, _MOST_PARTS), 1)
    parts = ceil_div(tiles, length)
    arguments: dict[str, object] = {
        "padding_ptr": padding_argument(padding),
        "n": n,
        "heads": heads,
        "parts": parts,
        "length": length * _CONFIGURATION.tokens,
        "BLOCK_N": _CONFIGURATION.tokens,
        "PARTS": _MOST_PARTS,
    }
    return (batch * heads * parts,), arguments


def _points(keys: Tensor, scale: float) -> dict[str, object]:
    d = keys.shape[3]
    return rows_argument("x", keys) | {"scale": scale, "D": d, "BLOCK_D": block_of(d)}


@triton.jit(do_not_specialize=CHANGING)
def _log_weights(
    x_ptr, x_batch, x_head, x_row, padding_ptr, logarithm_ptr, part_bound_ptr,
    n, heads, parts, length, scale,
    D: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """λ of a part of the keys, and its bounds."""
    pair, part, begin, end = _part_of_program(n, parts, length)
    x_ptr += pair // heads * x_batch + pair % heads * x_head
    if padding_ptr is not None:
        padding_ptr += pair // heads * n
    key = tl.arange(0, BLOCK_N)
    least = tl.full([BLOCK_N], float("inf"), tl.float32)
    largest = tl.full([BLOCK_N], float("-inf"), tl.float32)
    for first in range(begin, end, BLOCK_N):
        real = without_padding(padding_ptr, first, key, key < end - first)
        # [BLOCK_N, BLOCK_D]
        x = load_rows(x_ptr, first, key, x_row, real, D, BLOCK_D).to(tl.float32)
        logarithm = 0.5 * scale * tl.sum(x * x, 1)
        tl.store(logarithm_ptr + pair * n + first + key, logarithm, mask=key < end - first)
        least = tl.minimum(least, tl.where(real, logarithm, float("inf")))
        largest = tl.maximum(largest, tl.where(real, logarithm, float("-inf")))
    part_bound_ptr += (pair * PARTS + part) * 2
    tl.store(part_bound_ptr, tl.min(least, 0))
    tl.store(part_bound_ptr + 1, tl.max(largest, 0))


@triton.jit(do_not_specialize=CHANGING)
def _key_weights(
    padding_ptr, logarithm_ptr, part_bound_ptr, weight_ptr, bound_ptr,
    n, heads, parts, length, largest_range, BLOCK_N: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """w of a part of the keys, from the bounds of all."""
    pair, part, begin, end = _part_of_program(n, parts, length)
    if padding_ptr is not None:
        padding_ptr += pair // heads * n
    other = tl.arange(0, PARTS)
    of_parts = part_bound_ptr + (pair * PARTS + other) * 2
    least = tl.min(tl.load(of_parts, mask=other < parts, other=float("inf")), 0)
    largest = tl.max(tl.load(of_parts + 1, mask=other < parts, other=float("-inf")), 0)
    # All keys are padding.
    none_left = least > largest
    least = tl.where(none_left, 0.0, least)
    largest = tl.where(none_left, 0.0, largest)
    if part == 0:
        tl.store(bound_ptr + pair * 2, least)
        tl.store(bound_ptr + pair * 2 + 1, largest)
    tempering = largest_range / tl.maximum(largest - least, largest_range)
    key = tl.arange(0, BLOCK_N)
    for first in range(begin, end, BLOCK_N):
        inside = key < end - first
        real = without_padding(padding_ptr, first, key, inside)
        at = pair * n + first + key
        logarithm = tl.load(logarithm_ptr + at, mask=inside, other=0.0)
        weight = tl.exp(tempering * (logarithm - largest))
        tl.store(weight_ptr + at, tl.where(real, weight, 0.0), mask=inside)


@triton.jit(do_not_specialize=CHANGING)
def _weight_gradient_sums(
    padding_ptr, grad_ptr, weight_ptr, logarithm_ptr, bound_ptr, sums_ptr,
    n, heads, parts, length, BLOCK_N: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """Σ w dw, Σ w dw (λ − λ_max), and how many keys have the largest and the least λ."""
    pair, part, begin, end = _part_of_program(n, parts, length)
    if padding_ptr is not None:
        padding_ptr += pair // heads * n
    least = tl.load(bound_ptr + pair * 2)
    largest = tl.load(bound_ptr + pair * 2 + 1)
    key = tl.arange(0, BLOCK_N)
    slopes = tl.zeros([BLOCK_N], tl.float32)
    moments = tl.zeros([BLOCK_N], tl.float32)
    at_largest = tl.zeros([BLOCK_N], tl.float32)
    at_least = tl.zeros([BLOCK_N], tl.float32)
    for first in range(begin, end, BLOCK_N):
        real = without_padding(padding_ptr, first, key, key < end - first)
        at = pair * n + first + key
        logarithm = tl.load(logarithm_ptr + at, mask=real, other=0.0)
        slope = tl.load(weight_ptr + at, mask=real, other=0.0)
        slope *= tl.load(grad_ptr + at, mask=real, other=0.0)
        slopes += slope
        moments += slope * (logarithm - largest)
        at_largest += (real & (logarithm == largest)).to(tl.float32)
        at_least += (real & (logarithm == least)).to(tl.float32)
    sums_ptr += (pair * PARTS + part) * 4
    tl.store(sums_ptr, tl.sum(slopes, 0))
    tl.store(sums_ptr + 1, tl.sum(moments, 0))
    tl.store(sums_ptr + 2, tl.sum(at_largest, 0))
    tl.store(sums_ptr + 3, tl.sum(at_least, 0))


@triton.jit(do_not_specialize=CHANGING)
def _key_weights_gradient(
    x_ptr, x_batch, x_head, x_row, padding_ptr,
    grad_ptr, weight_ptr, logarithm_ptr, bound_ptr, sums_ptr,
    other_ptr, other_batch, other_head, other_row, dx_ptr, dx_batch, dx_head, dx_row,
    n, heads, parts, length, scale, largest_range,
    D: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """dK_j = s dλ_j k_j of a part of the keys, and another gradient of theirs."""
    pair, _number, begin, end = _part_of_program(n, parts, length)
    x_ptr += pair // heads * x_batch + pair % heads * x_head
    if other_ptr is not None:
        other_ptr += pair // heads * other_batch + pair % heads * other_head
    dx_ptr += pair // heads * dx_batch + pair % heads * dx_head
    if padding_ptr is not None:
        padding_ptr += pair // heads * n
    least = tl.load(bound_ptr + pair * 2)
    largest = tl.load(bound_ptr + pair * 2 + 1)
    other = tl.arange(0, PARTS)
    there = other < parts
    of_parts = sums_ptr + (pair * PARTS + other) * 4
    slopes = tl.sum(tl.load(of_parts, mask=there, other=0.0), 0)
    moments = tl.sum(tl.load(of_parts + 1, mask=there, other=0.0), 0)
    at_largest = tl.sum(tl.load(of_parts + 2, mask=there, other=0.0), 0)
    at_least = tl.sum(tl.load(of_parts + 3, mask=there, other=0.0), 0)
    limited = largest - least >= largest_range
    distance = tl.maximum(largest - least, largest_range)
    tempering = largest_range / distance
    of_range = tl.where(limited, -tempering / distance * moments, 0.0)
    of_largest = (of_range - tempering * slopes) / tl.maximum(at_largest, 1.0)
    of_least = -of_range / tl.maximum(at_least, 1.0)
    key = tl.arange(0, BLOCK_N)
    for first in range(begin, end, BLOCK_N):
        inside = key < end - first
        real = without_padding(padding_ptr, first, key, inside)
        at = pair * n + first + key
        logarithm = tl.load(logarithm_ptr + at, mask=real, other=0.0)
        slope = tl.load(weight_ptr + at, mask=real, other=0.0)
        slope *= tempering * tl.load(grad_ptr + at, mask=real, other=0.0)
        slope += tl.where(logarithm == largest, of_largest, 0.0)
        slope += tl.where(logarithm == least, of_least, 0.0)
        # [BLOCK_N, BLOCK_D]
        x = load_rows(x_ptr, first, key, x_row, real, D, BLOCK_D).to(tl.float32)
        dx = scale * slope[:, None] * x
        if other_ptr is not None:
            dx += load_rows(other_ptr, first, key, other_row, real, D, BLOCK_D).to(tl.float32)
        dx = tl.where(real[:, None], dx, 0.0)
        store_rows(dx_ptr, first, key, dx_row, dx, inside, D, BLOCK_D)


@triton.jit
def _part_of_program(n, parts, length):
    """The pair of this program, its part, its first key and the one after its last."""
    unit = tl.program_id(0).to(tl.int64)
    pair, part = unit // parts, unit % parts
    begin = part * length
    return pair, part, begin, tl.minimum(begin + length, n)
