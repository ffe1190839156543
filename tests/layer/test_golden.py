"""The authors' own outputs, for weights and inputs that golden_recipe draws."""

import re

import numpy as np
import pytest
import torch
from support.golden_recipe import OUTPUTS, SHAPES, draw, weight

import softattn

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
