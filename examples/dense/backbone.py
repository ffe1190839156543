"""The backbone of a detector or segmenter: its options, its weights and its frozen stages."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from timm.utils.model import freeze
from torch import nn

from examples.models.registry import MODELS, TWINS
from examples.models.transformer import PyramidTransformer
from examples.training import weights
from examples.training.errors import InputError

# With these options the cost is linear in the number of pixels, and the output of the attention
# stays as large beside its residual as it is at 224 × 224.
LINEAR = {"landmarks": "avg", "normalization": "token", "pinv": "minimax"}

# As published, except for an inverse that converges and is independent of the batch.
PUBLISHED = {"pinv": "minimax"}


def split_name(name: str, heads: Iterable[str]) -> tuple[str, str]:
    """``"retinanet_soft_norm_tiny"`` to ``("retinanet", "soft_norm_tiny")``.

    Raises:
        ValueError: no such head or backbone.
    """
    backbones = [*MODELS, *TWINS]
    for head in heads:
        if name.startswith(f"{head}_") and name.removeprefix(f"{head}_") in backbones:
            return head, name.removeprefix(f"{head}_")
    raise ValueError(
        f"there is no model {name!r}; a name is a head, one of {', '.join(heads)}, then _, then a "
        f"backbone, one of {', '.join(backbones)}"
    )


def attention_options(
    backbone: str, published: bool, options: dict[str, Any] | None
) -> dict[str, Any]:
    """Options of ``timm.create_model`` for a backbone.

    Args:
        backbone: its name.
        published: whether its attention is the published one, which the authors' weights need.
        options: which come before all others.
    """
    softmax = backbone in TWINS
    attention = {} if softmax else PUBLISHED if published else LINEAR
    return {**attention, **(options or {})}


def backbone_of(model: nn.Module) -> PyramidTransformer:
    """The backbone in a detector or segmenter."""
    return next(part for part in model.modules() if isinstance(part, PyramidTransformer))


def freeze_stages(model: nn.Module, count: int) -> None:
    """Freezes the first stages of the backbone, their batch norms included.

    Args:
        model: a detector or segmenter.
        count: number of stages, 0 to 4.

    Raises:
        ValueError: ``count`` is out of range.
    """
    backbone = backbone_of(model)
    if not 0 <= count <= len(backbone.stages):
        raise ValueError(f"frozen_stages must be from 0 to {len(backbone.stages)}, got {count}")
    if count:
        freeze(backbone, [f"stages.{stage}" for stage in range(count)])


@dataclass(frozen=True)
class Loaded:
    """Which weights a backbone took from a file.

    taken: number of tensors of the backbone that the file has.
    kept: names of tensors of the backbone that the file does not have.
    unused: names of tensors of the file that the backbone does not have.
    """

    taken: int
    kept: list[str]
    unused: list[str]

    def __str__(self) -> str:
        report = f"{self.taken} tensors of the backbone loaded"
        if self.kept:
            report += f"; not in the file, and kept as they were: {', '.join(self.kept)}"
        if self.unused:
            report += f"; in the file, and not used: {', '.join(self.unused)}"
        return report


def load_classifier(model: nn.Module, path: Path) -> Loaded:
    """Gives the backbone the weights of a classifier.

    Args:
        model: a detector or segmenter.
        path: a safetensors file, as ``examples.imagenet.train`` and ``convert`` write.

    Raises:
        InputError: the file cannot be read, or its weights are those of another backbone.
    """
    backbone = backbone_of(model)
    state_dict = weights.read(path)
    try:
        kept, unused = backbone.load_state_dict(state_dict, strict=False)
    except RuntimeError as error:
        _, mismatch, *others = str(error).splitlines()
        raise InputError(
            f"{path} does not fit the backbone: {mismatch.strip()}"
            + (f" There are {len(others)} more." if others else "")
        ) from error
    taken = len(state_dict) - len(unused)
    if not taken:
        raise InputError(f"{path} has no weights of the backbone; it has {', '.join(unused)}")
    return Loaded(taken, kept, unused)
