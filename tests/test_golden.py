"""The authors' own outputs, regenerated from tests/golden/README.md."""

import json
import re
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

import softattn

GOLDEN = Path(__file__).parent / "golden"
SHAPES = json.loads((GOLDEN / "official_state_dict_shapes.json").read_text())
OUTPUTS = np.load(GOLDEN / "official.npz")

PARAMETER_NAMES = {
    "W_q": "qk_proj",
    "W_v": "v_proj",
    "ff": "out_proj",
    "attn.Qlandmark_op": "landmarks.conv",
    "attn.Qnorm_act.0": "landmarks.norm",
    "attn.conv": "value_conv",
}
PRESETS = {
    "soft_attention": {"normalization": "none", "pinv": "soft"},
    "soft_norm_attention": {"normalization": "landmark", "pinv": "soft_norm_official"},
}


def draw(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def weight(key: str, shape: list[int]) -> torch.Tensor:
    x = draw(zlib.crc32(key.encode()), *shape)
    if len(shape) >= 2:
        x = x / np.sqrt(np.prod(shape[1:]))
    else:
        x = 1 + 0.1 * x if key.endswith("weight") else 0.1 * x
    if "W_q." in key or "Qnorm_act.0.weight" in key:
        x = 0.3 * x
    if key.endswith("attn.conv.weight"):
        x = 0.1 * x
    return torch.from_numpy(x.astype(np.float32))


def assert_close_to_golden(actual: torch.Tensor, name: str) -> None:
    golden = torch.from_numpy(OUTPUTS[name])
    assert actual.shape == golden.shape
    assert (actual - golden).abs().max() <= 1e-4 * golden.abs().max()


@pytest.mark.parametrize(("scale", "seed"), [("0.4", 3), ("0.15", 4)])
def test_kernel_and_inverse(scale, seed):
    tokens = torch.from_numpy(draw(seed, 4, 2, 49, 32) * np.float32(scale))
    block = softattn.gaussian_kernel(tokens, tokens, scale=1.0)
    assert_close_to_golden(block, f"gaussian_kernel/scale{scale}")
    inverse = softattn.newton_pinv(block, method="soft", ridge=0.01)
    assert_close_to_golden(inverse, f"newton_inverse/scale{scale}")


@pytest.mark.parametrize("name", [name for name in OUTPUTS.files if "_attention/" in name])
def test_attention_layer(name):
    module, map_size = name.rsplit("/", 2)[:2]
    kind, geometry = module.split("/")
    dim, heads, ratio, conv = map(int, re.findall(r"\d+", geometry))
    grid = tuple(map(int, map_size.split("x")))
    layer = softattn.SoftmaxFreeAttention(
        dim,
        heads,
        landmarks=softattn.ConvLandmarks(dim // heads, ratio),
        value_conv=conv,
        **PRESETS[kind],
    )
    state = {}
    for key, shape in SHAPES[module].items():
        official, parameter = key.rsplit(".", 1)
        state[f"{PARAMETER_NAMES[official]}.{parameter}"] = weight(key, shape)
    layer.load_state_dict(state)
    tokens = torch.from_numpy(draw(2, 2, grid[0] * grid[1], dim))
    with torch.no_grad():
        assert_close_to_golden(layer(tokens, grid=grid)[:, ::7], name)
