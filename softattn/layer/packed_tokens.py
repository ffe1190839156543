"""Sequences of different lengths: jagged, or packed with their offsets."""

from dataclasses import dataclass

import torch
from torch import Tensor

from softattn.common.validation import check_cu_seqlens


@dataclass(frozen=True)
class PackedTokens:
    """Sequences one after the other.

    features: (total, embed_dim).
    cu_seqlens: (batch + 1,), where each begins, and total; on the CPU.
    jagged: the nested tensor that they came as, or None.
    """

    features: Tensor
    cu_seqlens: Tensor
    jagged: Tensor | None

    def split(self, tokens: Tensor) -> tuple[Tensor, ...]:
        """A result for all tokens, (total, …), by sequence."""
        return tokens.split(self.cu_seqlens.diff().tolist())

    def restore(self, output: Tensor) -> Tensor:
        """A result for all tokens, (total, …), jagged where the tokens were."""
        if self.jagged is None:
            return output
        # The same offsets: nested tensors add up only where they share them.
        return torch.nested.nested_tensor_from_jagged(output, _offsets(self.jagged))


def is_packed(x: object, cu_seqlens: Tensor | None) -> bool:
    """Whether sequences of different lengths were given."""
    return cu_seqlens is not None or (isinstance(x, Tensor) and x.is_nested)


def as_packed(name: str, x: Tensor, embed_dim: int, cu_seqlens: Tensor | None) -> PackedTokens:
    """Makes ``PackedTokens`` of the ``"x"`` or ``"context"`` of a layer.

    Raises:
        TypeError: the offsets are not int32 or int64.
        ValueError: another layout or shape, or offsets that are missing, too many or do not fit.
    """
    offsets_name = {"x": "cu_seqlens", "context": "context_cu_seqlens"}[name]
    if x.is_nested:
        if cu_seqlens is not None:
            raise ValueError(f"{name} is nested and has its own offsets; leave out {offsets_name}")
        # Where the tokens are not what is jagged, the last size is symbolic and equals no number.
        if x.layout != torch.jagged or x.ndim != 3 or x.shape[2] != embed_dim:
            raise ValueError(
                f"{name} must be nested as (batch, jagged tokens, {embed_dim}) with layout="
                "torch.jagged, as torch.nested.nested_tensor_from_jagged(tokens, offsets) makes it"
            )
        jagged = x.contiguous()
        return PackedTokens(jagged.values(), _offsets(jagged).cpu(), jagged)
    if cu_seqlens is None or x.ndim != 2 or x.shape[1] != embed_dim:
        raise ValueError(
            f"{name} must be a jagged nested tensor, or packed as (total, {embed_dim}) with "
            f"{offsets_name}, as sequences of different lengths were given; got shape "
            f"{tuple(x.shape)} with{'out' if cu_seqlens is None else ''} {offsets_name}"
        )
    check_cu_seqlens(offsets_name, cu_seqlens, len(x), x.device)
    return PackedTokens(x, cu_seqlens.cpu(), None)


def _offsets(jagged: Tensor) -> Tensor:
    return jagged.offsets()  # type: ignore[attr-defined]
