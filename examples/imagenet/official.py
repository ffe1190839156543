"""The authors' names of all parameters, and how to convert the parameters."""

import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from examples.models.transformer import REDUCTIONS

Shape = tuple[int, ...]

# The class token and the last map of an image of 224 × 224.
_LAST_POSITIONS = 1 + (224 // REDUCTIONS[-1]) ** 2

# The stage, from 1, and the block of a parameter's name.
_BLOCK = r"block([1-4])\.(\d+)\."

# Modules of the softmax-free blocks: our name, their name.
_MODULES = {
    "attn.qk_proj": "mha.W_q",
    "attn.v_proj": "mha.W_v",
    "attn.out_proj": "mha.ff",
    "attn.landmarks.conv": "mha.attn.Qlandmark_op",
    "attn.landmarks.norm": "mha.attn.Qnorm_act.0",
    "attn.value_conv": "mha.attn.conv",
    "norm1": "norm1",
    "mlp.fc1": "ff1",
    "mlp.fc2": "ff2",
    "norm2": "norm2",
}


def options(official: Mapping[str, Tensor]) -> dict[str, Any]:
    """Options of the model that follow from a state_dict: its depths and number of classes."""
    found: dict[str, Any] = {}
    blocks = {match.groups() for name in official if (match := re.match(_BLOCK, name))}
    depths = Counter(stage for stage, _ in blocks)
    if len(depths) == 4:
        found["depths"] = [depths[stage] for stage in sorted(depths)]
    if "head.bias" in official:
        found["num_classes"] = len(official["head.bias"])
    return found


def from_official(official: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Converts a state_dict with the authors' names to one for ``model``.

    Raises:
        ValueError: parameters are missing, unexpected or of another shape; all are listed.
    """
    origins = {
        name: _origin(name, tuple(value.shape)) for name, value in model.state_dict().items()
    }
    _check(official, {key: shape for o in origins.values() for key, shape in o.shapes.items()})
    return {
        name: origin.combine(*(official[key] for key in origin.shapes)).contiguous()
        for name, origin in origins.items()
    }


@dataclass(frozen=True)
class _Origin:
    """The authors' parameters, by name, that ``combine`` turns into one of ours."""

    shapes: dict[str, Shape]
    combine: Callable[..., Tensor] = lambda parameter: parameter


def _origin(name: str, shape: Shape) -> _Origin:
    if match := re.fullmatch(r"stages\.(\d)\.pos_embed", name):
        # Theirs are sequences; in the last stage the class token has a position too.
        stage, (_, height, width, dim) = int(match[1]), shape
        prefix = 1 if stage == 3 else 0
        return _Origin(
            {f"pos_embed{stage + 1}": (1, prefix + height * width, dim)},
            lambda positions: positions[:, prefix:].reshape(shape),
        )
    if name == "stages.3.cls_token":
        return _Origin(
            {"cls_token": shape, "pos_embed4": (1, _LAST_POSITIONS, shape[-1])},
            lambda token, positions: token + positions[:, :1],
        )
    if match := re.fullmatch(r"stages\.3\.blocks\.(\d+)\.attn\.qkv\.(\w+)", name):
        block, parameter = match.groups()
        (rows, *columns), attention = shape, f"block4.{block}.attn"
        return _Origin(
            {
                f"{attention}.q.{parameter}": (rows // 3, *columns),
                f"{attention}.kv.{parameter}": (2 * rows // 3, *columns),
            },
            lambda q, kv: torch.cat([q, kv]),
        )
    return _Origin({_official_name(name): shape})


def _official_name(name: str) -> str:
    """The authors' name of a parameter that is the same in both."""
    if match := re.fullmatch(r"stages\.(\d)\.patch_embed\.(\d)\.(conv|bn)\.(\w+)", name):
        # Theirs is a flat sequence of convolution, norm, ReLU, convolution, and so on.
        stage, layer, kind, parameter = match.groups()
        place = 3 * int(layer) + ("conv", "bn").index(kind)
        return f"patch_embed{int(stage) + 1}.proj.{place}.{parameter}"
    if match := re.fullmatch(r"stages\.([012])\.blocks\.(\d+)\.(.+)\.(\w+)", name):
        stage, block, module, parameter = match.groups()
        return f"block{int(stage) + 1}.{block}.att.{_MODULES[module]}.{parameter}"
    return re.sub(r"^stages\.3\.blocks", "block4", name)


def _check(official: Mapping[str, Tensor], expected: Mapping[str, Shape]) -> None:
    shapes = {name: tuple(value.shape) for name, value in official.items()}
    problems = {
        "missing": [f"{name} {expected[name]}" for name in expected if name not in shapes],
        "unexpected": [f"{name} {shapes[name]}" for name in shapes if name not in expected],
        "of another shape": [
            f"{name}: expected {expected[name]}, got {shapes[name]}"
            for name in expected
            if name in shapes and shapes[name] != expected[name]
        ],
    }
    if any(problems.values()):
        lists = [
            f"{len(names)} {problem}:\n  " + "\n  ".join(names)
            for problem, names in problems.items()
            if names
        ]
        raise ValueError("the checkpoint does not fit the model\n" + "\n".join(lists))
