"""Calls that make the launchers of ``softattn.kernels`` launch every variant of every kernel.

To be compiled, the tensors are on the device "meta": they have shapes, dtypes and strides, and no
memory. What is compiled depends on nothing else.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

_BATCH, _HEADS = 4, 2
_RATE, _SCALE, _FLOOR = 0.1, 0.1, 0.03
# Distances for which the kernel is neither 0 nor 1.
_NEAR = 0.3
_RUN = 16
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


@dataclass(frozen=True)
class Case:
    """One call of a launcher.

    variant: a name in ``VARIANTS``.
    features: D and D_v; for "newton" without a meaning.
    landmarks: m; in exact attention the number of keys.
    dtype: of the tokens, a name in ``DTYPES``.
    padded: whether tokens, and in exact attention keys, may be padding.
    tokens: n, of each head.
    device: where the tensors are; numbers on a real one are random.
    """

    variant: str
    features: int
    landmarks: int
    dtype: str = "bfloat16"
    padded: bool = False
    tokens: int = 4096
    device: str = "meta"

    def __str__(self) -> str:
        """What tests and tables call it."""
        padded = "-padded" if self.padded else ""
        return f"{self.variant}-D{self.features}-m{self.landmarks}-{self.dtype}{padded}"

    def call(self) -> Callable[[], object]:
        """A call of the launcher, always with the same tensors of many tokens; what it returns."""
        inputs = _Inputs(self)
        return lambda: VARIANTS[self.variant](inputs)


@dataclass(frozen=True)
class _Inputs:
    case: Case

    def rows(self, number: int, columns: int, *, float32: bool = False) -> Tensor:
        dtype = torch.float32 if float32 else DTYPES[self.case.dtype]
        shape = (_BATCH, _HEADS, number, columns)
        return torch.randn(shape, dtype=dtype, device=self.case.device)

    @cached_property
    def tokens(self) -> Tensor:
        return _NEAR * self.rows(self.case.tokens, self.case.features)

    @cached_property
    def values(self) -> Tensor:
        return self.rows(self.case.tokens, self.case.features)

    @cached_property
    def landmarks(self) -> Tensor:
        return _NEAR * self.rows(self.case.landmarks, self.case.features)

    @cached_property
    def key_values(self) -> Tensor:
        """V of exact attention, whose keys stand in the landmarks' place."""
        return self.rows(self.case.landmarks, self.case.features)

    @cached_property
    def middle(self) -> Tensor:
        return self.rows(self.case.landmarks, self.case.landmarks, float32=True)

    @cached_property
    def per_token(self) -> Tensor:
        return 1 + torch.rand(_BATCH, _HEADS, self.case.tokens, device=self.case.device)

    @cached_property
    def order(self) -> Tensor:
        """A random order of the tokens of each head."""
        return torch.rand(_BATCH, _HEADS, self.case.tokens, device=self.case.device).argsort()

    @cached_property
    def diagonal(self) -> Tensor:
        """c, between 0 and 1."""
        return torch.rand(_BATCH, _HEADS, self.case.tokens, device=self.case.device)

    @cached_property
    def per_landmark(self) -> Tensor:
        return torch.randn(_BATCH, _HEADS, self.case.landmarks, device=self.case.device)

    def sums(self, *, ones: bool) -> Tensor:
        return self.rows(self.case.landmarks, self.case.features + ones, float32=True)

    def common(self) -> dict[str, object]:
        """What all launchers over tokens and landmarks take."""
        center = torch.zeros(_BATCH, _HEADS, self.case.features, device=self.case.device)
        return {
            "rate": _RATE,
            "center": center if self.case.dtype == "float32" else None,
            "padding": self.padding(self.case.tokens),
        }

    def padding(self, number: int) -> Tensor | None:
        mask = torch.zeros(_BATCH, number, dtype=torch.bool, device=self.case.device)
        return mask if self.case.padded else None

    def key_padding(self) -> Tensor | None:
        return self.padding(self.case.landmarks)


def _sums(
    inputs: _Inputs, *, ones: bool = False, exact: bool = False, weights: bool = False
) -> object:
    from softattn.kernels import tokens_to_landmarks

    return tokens_to_landmarks(
        inputs.landmarks,
        inputs.tokens,
        inputs.values,
        row_shift=inputs.per_token if exact else None,
        landmark_padding=inputs.key_padding() if exact else None,
        key_weights=inputs.per_token if weights else None,
        with_ones=ones,
        **inputs.common(),
    )


def _output(
    inputs: _Inputs, *, quotient: bool = False, diagonal: bool = False, weights: bool = False
) -> object:
    from softattn.kernels import Diagonal, landmarks_to_tokens

    key_weights = inputs.per_token if weights else None
    return landmarks_to_tokens(
        inputs.tokens,
        inputs.landmarks,
        inputs.sums(ones=quotient),
        dtype=inputs.tokens.dtype,
        floor=_FLOOR if quotient else None,
        diagonal=Diagonal(inputs.values, inputs.middle, key_weights) if diagonal else None,
        **inputs.common(),
    )


def _exact_output(inputs: _Inputs, *, normalize: bool) -> object:
    from softattn.kernels import landmarks_to_tokens

    return landmarks_to_tokens(
        inputs.tokens,
        inputs.landmarks,
        inputs.key_values,
        dtype=inputs.tokens.dtype,
        landmark_padding=inputs.key_padding(),
        normalize=normalize,
        **inputs.common(),
    )


def _quotient(inputs: _Inputs, *, diagonal: bool, weights: bool = False) -> object:
    from softattn.kernels import quotient_gradient

    return quotient_gradient(
        inputs.tokens,
        inputs.landmarks,
        inputs.values,
        inputs.values,
        inputs.per_landmark,
        inputs.per_token,
        floor=_FLOOR,
        row_shift=None if diagonal else inputs.per_token,
        values=inputs.values if diagonal else None,
        diagonal=inputs.diagonal if diagonal else None,
        key_weights=inputs.per_token if weights else None,
        **inputs.common(),
    )


def _gradient(
    inputs: _Inputs,
    *,
    queries: bool,
    keys: bool,
    quotient: bool,
    diagonal: bool = False,
    weights: bool = False,
) -> object:
    from softattn.kernels import KeyTerms, QueryTerms, token_gradient

    per_token = inputs.per_token
    key_weights = (per_token if weights else None, per_token if weights and diagonal else None)
    sums = inputs.sums(ones=quotient)
    return token_gradient(
        inputs.tokens,
        inputs.landmarks,
        queries=QueryTerms(
            inputs.values,
            sums,
            denominator=per_token if quotient else None,
            grad_denominator=per_token if quotient else None,
            diagonal=inputs.diagonal if diagonal else None,
            grad_diagonal=per_token if diagonal else None,
            middle=inputs.middle if diagonal else None,
            row_shift=per_token if quotient and not diagonal else None,
            floor=_FLOOR,
        )
        if queries
        else None,
        keys=KeyTerms(inputs.values, sums, *key_weights) if keys else None,
        scale=_SCALE,
        **inputs.common(),
    )


def _near_field(inputs: _Inputs) -> object:
    from softattn.kernels import near_field_output

    return near_field_output(
        inputs.tokens,
        inputs.landmarks,
        inputs.values,
        weights=inputs.sums(ones=True),
        middle=inputs.middle,
        order=inputs.order,
        near_field=_RUN,
        floor=_FLOOR,
        **inputs.common(),
    )


def _near_field_gradient(inputs: _Inputs) -> object:
    from softattn.kernels import near_field_gradient

    return near_field_gradient(
        inputs.tokens,
        inputs.landmarks,
        inputs.values,
        inputs.values,
        weights=inputs.sums(ones=True),
        middle=inputs.middle,
        denominator=inputs.per_token,
        grad_denominator=inputs.per_token,
        grad_sums=inputs.sums(ones=True),
        order=inputs.order,
        near_field=_RUN,
        scale=_SCALE,
        floor=_FLOOR,
        **inputs.common(),
    )


def _exact_gradient(inputs: _Inputs, *, normalize: bool) -> object:
    from softattn.kernels import QueryTerms, token_gradient

    per_token = inputs.per_token if normalize else None
    return token_gradient(
        inputs.tokens,
        inputs.landmarks,
        queries=QueryTerms(
            inputs.values, inputs.key_values, grad_denominator=per_token, row_shift=per_token
        ),
        keys=None,
        scale=_SCALE,
        landmark_padding=inputs.key_padding(),
        **inputs.common(),
    )


def _nearest(inputs: _Inputs, *, places: bool) -> object:
    from softattn.kernels import labels_and_places, nearest_landmarks

    common = inputs.common()
    common.pop("rate")
    common["landmark_padding"] = inputs.key_padding()
    if not places:
        return nearest_landmarks(inputs.tokens, inputs.landmarks, **common)
    ones = torch.ones(_BATCH, _HEADS, inputs.case.features, device=inputs.case.device)
    origin = ones if common["center"] is None else None
    return labels_and_places(
        inputs.tokens, inputs.landmarks, direction=ones, origin=origin, **common
    )


def _clusters(inputs: _Inputs) -> object:
    from softattn.kernels import cluster_sums

    labels = inputs.per_token.long()
    return cluster_sums(inputs.tokens, labels, inputs.case.landmarks)


def _block(inputs: _Inputs) -> object:
    from softattn.kernels import gaussian_kernel

    return gaussian_kernel(inputs.landmarks, inputs.landmarks, rate=_RATE)


def _block_gradient(inputs: _Inputs) -> object:
    from softattn.kernels import gaussian_kernel_gradient

    return gaussian_kernel_gradient(
        inputs.landmarks, inputs.landmarks, inputs.middle, inputs.middle, scale=_SCALE
    )


def _newton(inputs: _Inputs) -> object:
    from softattn.kernels import newton

    matrices = inputs.middle.flatten(0, 1)
    return newton(matrices, matrices, lower=0.1, steps=10)


def _middle_factor(inputs: _Inputs, *, normalized: bool) -> object:
    from softattn.kernels import middle_factor

    return middle_factor(
        inputs.landmarks,
        rate=_RATE,
        ridge=0.01,
        normalized=normalized,
        padding=inputs.key_padding(),
    )


def _middle_factor_gradient(inputs: _Inputs, *, normalized: bool) -> object:
    from softattn.kernels import middle_factor_gradient

    middle = inputs.middle
    return middle_factor_gradient(
        inputs.landmarks,
        middle,
        middle,
        middle,
        inputs.landmarks,
        scale=_SCALE,
        normalized=normalized,
        padding=inputs.key_padding(),
    )


def _weights(inputs: _Inputs, *, token: bool) -> object:
    from softattn.kernels import landmark_weights

    sums = inputs.sums(ones=token).unsqueeze(2).expand(-1, -1, 4, -1, -1).contiguous()
    return landmark_weights(
        sums,
        inputs.middle,
        inputs.case.features,
        inputs.tokens.dtype,
        with_symmetric_middle=token,
    )


def _weights_gradient(inputs: _Inputs, *, token: bool) -> object:
    from softattn.kernels import landmark_weights_gradient

    sums = inputs.sums(ones=token)
    return landmark_weights_gradient(
        sums.unsqueeze(2),
        inputs.middle.unsqueeze(2) if token else None,
        inputs.middle,
        sums,
        inputs.case.features,
        inputs.tokens.dtype,
    )


def _key_weights(inputs: _Inputs) -> object:
    from softattn.kernels import key_weights, key_weights_gradient

    options = {"scale": _SCALE, "largest_range": 8.0, "padding": inputs.padding(inputs.case.tokens)}
    computed = key_weights(inputs.tokens, **options)
    gradient = key_weights_gradient(inputs.per_token, inputs.tokens, computed, **options)
    return computed, gradient


def _small_sums(inputs: _Inputs) -> object:
    from softattn.kernels import add_stretches, median_token

    stretches = inputs.sums(ones=False).unsqueeze(2).repeat(1, 1, 3, 1, 1)
    return add_stretches(stretches, inputs.tokens.dtype), median_token(inputs.tokens)


# By what they are launched for. "exact" has keys in the landmarks' place.
VARIANTS: dict[str, Callable[[_Inputs], object]] = {
    "sums": _sums,
    "sums with ones": lambda i: _sums(i, ones=True),
    "sums with weights": lambda i: _sums(i, ones=True, weights=True),
    "sums, exact": lambda i: _sums(i, exact=True),
    "output": _output,
    "output, quotient": lambda i: _output(i, quotient=True),
    "output, diagonal": lambda i: _output(i, quotient=True, diagonal=True),
    "output, diagonal and weights": lambda i: _output(
        i, quotient=True, diagonal=True, weights=True
    ),
    "output, exact": lambda i: _exact_output(i, normalize=False),
    "output, exact normalized": lambda i: _exact_output(i, normalize=True),
    "quotient gradient": lambda i: _quotient(i, diagonal=False),
    "quotient gradient, diagonal": lambda i: _quotient(i, diagonal=True),
    "quotient gradient, diagonal and weights": lambda i: _quotient(i, diagonal=True, weights=True),
    "gradient": lambda i: _gradient(i, queries=True, keys=True, quotient=False),
    "gradient, diagonal": lambda i: _gradient(
        i, queries=True, keys=True, quotient=True, diagonal=True
    ),
    "gradient, diagonal and weights": lambda i: _gradient(
        i, queries=True, keys=True, quotient=True, diagonal=True, weights=True
    ),
    "gradient of queries": lambda i: _gradient(i, queries=True, keys=False, quotient=False),
    "gradient of queries, quotient": lambda i: _gradient(
        i, queries=True, keys=False, quotient=True
    ),
    "gradient of keys": lambda i: _gradient(i, queries=False, keys=True, quotient=False),
    "gradient of keys, quotient": lambda i: _gradient(i, queries=False, keys=True, quotient=True),
    "gradient of keys with weights": lambda i: _gradient(
        i, queries=False, keys=True, quotient=True, weights=True
    ),
    "near field": _near_field,
    "near field gradient": _near_field_gradient,
    "gradient, exact": lambda i: _exact_gradient(i, normalize=False),
    "gradient, exact normalized": lambda i: _exact_gradient(i, normalize=True),
    "nearest": lambda i: _nearest(i, places=False),
    "nearest with places": lambda i: _nearest(i, places=True),
    "clusters": _clusters,
    "block": _block,
    "block gradient": _block_gradient,
    "newton": _newton,
    "middle factor": lambda i: _middle_factor(i, normalized=False),
    "middle factor, landmark": lambda i: _middle_factor(i, normalized=True),
    "middle factor gradient": lambda i: _middle_factor_gradient(i, normalized=False),
    "middle factor gradient, landmark": lambda i: _middle_factor_gradient(i, normalized=True),
    "weights": lambda i: _weights(i, token=False),
    "weights, token": lambda i: _weights(i, token=True),
    "weights gradient": lambda i: _weights_gradient(i, token=False),
    "weights gradient, token": lambda i: _weights_gradient(i, token=True),
    "key weights": _key_weights,
    "small sums": _small_sums,
}
