"""The authors' outputs, and the weights and inputs of golden/README.md that they are for."""

import json
import zlib
from pathlib import Path

import numpy as np
import torch

_FOLDER = Path(__file__).parent / "golden"
SHAPES = json.loads((_FOLDER / "official_state_dict_shapes.json").read_text())
OUTPUTS = np.load(_FOLDER / "official.npz")


def draw(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def weight(key: str, shape: list[int]) -> torch.Tensor:
    if key.endswith("num_batches_tracked"):
        return torch.tensor(0)
    x = draw(zlib.crc32(key.encode()), *shape)
    if key.endswith("running_var"):
        x = abs(x) * 0.1 + 1
    elif len(shape) >= 2 and "pos_embed" not in key and "cls_token" not in key:
        x = x / np.sqrt(np.prod(shape[1:]))
    elif key.endswith("weight"):
        x = 1 + 0.1 * x
    else:
        x = 0.1 * x
    if "W_q." in key or "Qnorm_act.0.weight" in key:
        x = 0.3 * x
    if key.endswith("attn.conv.weight"):
        x = 0.1 * x
    return torch.from_numpy(x.astype(np.float32))


def state_dict(shapes: dict[str, list[int]]) -> dict[str, torch.Tensor]:
    return {key: weight(key, shape) for key, shape in shapes.items()}
