"""Softmax-free attention in timm's vision transformers."""

import copy

import pytest
import timm
import torch
from support.strategies import normal
from timm.models import create_feature_extractor
from timm.models.vision_transformer import Attention
from timm.optim import param_groups_layer_decay
from torch import nn

from softattn import AvgPoolLandmarks, ConvLandmarks, SoftmaxFreeAttention
from softattn.integrations.timm import SoftmaxFreeViTAttention, swap_attention

SMALL = {"img_size": 64, "num_classes": 5, "depth": 2, "embed_dim": 24, "num_heads": 3}


def vit(name: str = "vit_tiny_patch16_224", **options) -> nn.Module:
    torch.manual_seed(1)
    model = timm.create_model(name, **SMALL | options).double().eval()
    # timm starts these at 0 or nearly so, where many faults make no difference.
    biases = (block.attn.qkv.bias for block in model.blocks)
    for parameter in (model.cls_token, model.reg_token, model.pos_embed, *biases):
        if parameter is not None:
            nn.init.normal_(parameter)
    return model


def images(*size: int, seed: int = 0) -> torch.Tensor:
    return normal(2, 3, *(size or (64, 64)), seed=seed)


def tie(model: nn.Module) -> nn.Module:
    """Gives keys the projection of queries, and both one norm."""
    for block in model.blocks:
        with torch.no_grad():
            for parameter in (block.attn.qkv.weight, block.attn.qkv.bias):
                if parameter is not None:
                    w_q, w_k, _ = parameter.chunk(3)
                    w_k.copy_(w_q)
        block.attn.q_norm = nn.LayerNorm(8, eps=0, elementwise_affine=False)
        block.attn.k_norm = nn.LayerNorm(8, eps=0, elementwise_affine=False)
    return model


MODELS = [
    pytest.param("vit_tiny_patch16_224", {}, 1, id="class token"),
    pytest.param(
        "vit_tiny_patch16_224", {"class_token": False, "global_pool": "avg"}, 0, id="none"
    ),
    pytest.param("vit_small_patch14_reg4_dinov2", {"img_size": 56}, 5, id="registers"),
    pytest.param("deit_tiny_distilled_patch16_224", {}, 2, id="distilled"),
    pytest.param("vit_tiny_patch16_224", {"qk_norm": True}, 1, id="qk norm"),
    pytest.param("vit_tiny_patch16_224", {"scale_attn_norm": True}, 1, id="scale norm"),
    pytest.param("vit_tiny_patch16_224", {"qkv_bias": False}, 1, id="no bias"),
]


@pytest.mark.parametrize(("name", "options", "prefix"), MODELS)
def test_models_run_and_train(name, options, prefix):
    model = vit(name, **options)
    report = swap_attention(model, landmarks=AvgPoolLandmarks(4))
    assert dict(report.swapped) == {"blocks.0.attn": "", "blocks.1.attn": ""}
    assert not report.left_alone
    assert f"prefix tokens (class and registers) before it: {prefix}" in str(report)
    x = images(*model.patch_embed.img_size)
    evaluated = model(x)
    trained = model.train()(x)
    for output in (evaluated, *(trained if isinstance(trained, tuple) else (trained,))):
        assert output.shape == (2, 5)
        assert output.isfinite().all()
    if not isinstance(trained, tuple):
        torch.testing.assert_close(trained, evaluated, rtol=0, atol=0)
    model.eval()(x).square().sum().backward()
    for parameter_name, parameter in model.named_parameters():
        assert parameter.grad.isfinite().all(), parameter_name
        assert parameter.grad.any(), parameter_name


@pytest.mark.parametrize(("name", "options", "prefix"), MODELS)
def test_attention_is_that_of_the_parts(name, options, prefix):
    model = vit(name, **options)
    softmax = copy.deepcopy(model.blocks[0].attn)
    for norm in (softmax.q_norm, softmax.k_norm):
        for parameter in norm.parameters():
            nn.init.normal_(parameter)
    model.blocks[0].attn = copy.deepcopy(softmax)
    swap_attention(model, landmarks=AvgPoolLandmarks(4))
    dim = model.embed_dim
    layer = SoftmaxFreeAttention(
        dim,
        softmax.num_heads,
        landmarks=AvgPoolLandmarks(4),
        normalization="softmax",
        bias=softmax.qkv.bias is not None,
    ).double()
    heads = softmax.num_heads
    w_q, w_k, w_v = softmax.qkv.weight.chunk(3)
    with torch.no_grad():
        layer.qk_proj.weight.copy_((w_q + w_k) / 2)
        layer.v_proj.weight.copy_(w_v)
        if softmax.qkv.bias is not None:
            b_q, b_k, b_v = softmax.qkv.bias.chunk(3)
            layer.qk_proj.bias.copy_((b_q + b_k) / 2)
            layer.v_proj.bias.copy_(b_v)
    layer.out_proj = nn.Sequential(softmax.norm, softmax.proj)
    if isinstance(softmax.q_norm, nn.LayerNorm):
        norm = nn.LayerNorm(dim // heads, eps=softmax.q_norm.eps).double()
        with torch.no_grad():
            norm.weight.copy_((softmax.q_norm.weight + softmax.k_norm.weight) / 2)
            norm.bias.copy_((softmax.q_norm.bias + softmax.k_norm.bias) / 2)
        layer.qk_proj.register_forward_hook(
            lambda _, __, keys: norm(keys.unflatten(-1, (heads, -1))).flatten(-2)
        )
    x = normal(2, prefix + 16, dim, seed=0)
    expected = layer(x, grid=(4, 4), num_prefix_tokens=prefix)
    torch.testing.assert_close(model.blocks[0].attn(x), expected)


@pytest.mark.parametrize(("name", "options", "prefix"), MODELS)
def test_attention_factors_are_the_weights_of_the_values(name, options, prefix):
    model = vit(name, **options)
    swap_attention(model, landmarks=AvgPoolLandmarks(4))
    attention = model.blocks[0].attn
    attention.scale *= 2
    seen = []
    attention.register_forward_hook(lambda _, arguments, output: seen.append((*arguments, output)))
    model(images(*model.patch_embed.img_size))
    ((x, output),) = seen
    factors = attention.attention_factors(x)
    n = prefix + 16
    weights = factors.rows(range(n))
    assert weights.shape == (2, attention.num_heads, n, n)
    torch.testing.assert_close(weights.sum(-1), torch.ones_like(weights[..., 0]))
    values = attention.v_proj(x).unflatten(-1, (attention.num_heads, -1)).transpose(1, 2)
    attended = (weights @ values).transpose(1, 2).flatten(2)
    torch.testing.assert_close(attention.proj(attention.norm(attended)), output)


@pytest.mark.parametrize("options", [{}, {"scale_attn_norm": True}, {"qkv_bias": False}])
def test_is_the_softmax_model_where_queries_are_keys_of_one_norm(options):
    softmax = tie(vit(class_token=False, global_pool="avg", **options))
    model = copy.deepcopy(softmax)
    swap_attention(model, landmarks=AvgPoolLandmarks(16), pinv=torch.linalg.inv)
    x = images()
    torch.testing.assert_close(model(x), softmax(x))


def test_comes_near_the_softmax_model_with_a_class_token():
    softmax = tie(vit())
    x = images()
    expected = softmax(x)
    errors = []
    for m in (1, 16):
        model = copy.deepcopy(softmax)
        swap_attention(model, landmarks=AvgPoolLandmarks(m))
        errors.append((model(x) - expected).norm() / expected.norm())
    assert errors[1] < errors[0] < 0.2


def test_dynamic_sizes_have_the_grid_of_their_image():
    model = vit(dynamic_img_size=True)
    swap_attention(model, landmarks=AvgPoolLandmarks((2, 3)))
    shadow = copy.deepcopy(model)
    wide, high = images(32, 96), images(96, 32)
    seen = []
    model.blocks[0].attn.landmarks.register_forward_hook(lambda _, args, __: seen.append(args[1]))
    output = model(wide)
    model(high)
    assert seen == [(2, 6), (6, 2)]
    torch.testing.assert_close(shadow(wide), output, rtol=0, atol=0)
    assert model.blocks[0].attn.grid.sizes == (6, 2)
    assert shadow.blocks[0].attn.grid.sizes == (2, 6)


def test_tokens_that_are_not_the_grid_are_refused():
    model = vit()
    swap_attention(model)
    with pytest.raises(ValueError, match=r"grid \(4, 4\) holds 16 tokens, got 9"):
        model.blocks(normal(2, 10, 24, seed=0))


def test_size_set_later():
    model = vit()
    swap_attention(model, landmarks=AvgPoolLandmarks(4))
    model.set_input_size(img_size=(96, 32))
    assert model(images(96, 32)).isfinite().all()
    assert model.blocks[0].attn.grid.sizes == (6, 2)


def test_features_by_fx():
    model = vit()
    swap_attention(model, landmarks=AvgPoolLandmarks(4))
    nodes = {"blocks.0": "first", "head": "logits"}
    features = create_feature_extractor(model, nodes)(images())
    assert features["first"].shape == (2, 17, 24)
    torch.testing.assert_close(features["logits"], model(images()), rtol=0, atol=0)


def test_layer_decay():
    model = vit()
    swap_attention(model, landmarks=ConvLandmarks(8, 2).double())
    groups = param_groups_layer_decay(model, layer_decay=0.5)
    scales = {p: group["lr_scale"] for group in groups for p in group["params"]}
    for index, block in enumerate(model.blocks):
        assert {scales[p] for p in block.attn.parameters()} == {0.5 ** (2 - index)}


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"attn_mask": torch.zeros(17, 17)}, "masks pairs of tokens"),
        ({"is_causal": True}, "causal attention is not offered"),
    ],
)
def test_masks_are_refused(options, reason):
    model = vit()
    swap_attention(model)
    with pytest.raises(ValueError, match=reason):
        model.blocks[0].attn(normal(2, 17, 24, seed=0), **options)


def test_blocks_are_chosen():
    model = vit(attn_drop_rate=0.1)
    report = swap_attention(model, blocks=[1])
    assert dict(report.swapped) == {"blocks.1.attn": "without its attn_drop 0.1"}
    assert dict(report.left_alone) == {"blocks.0": "it is not among the blocks"}
    assert type(model.blocks[0].attn) is Attention
    assert type(model.blocks[1].attn) is SoftmaxFreeViTAttention
    assert "grid of the image, by default (4, 4)" in str(report)


def test_pooling_is_left_alone():
    model = vit("vit_base_patch16_siglip_224")
    report = swap_attention(model)
    assert set(report.left_alone) == {"attn_pool"}
    assert model(images()).isfinite().all()


def test_gate_is_carried_over():
    model = vit()
    softmax = Attention(24, 3, qkv_bias=True, gated=True).double()
    plain = copy.deepcopy(softmax)
    plain.gate = None
    plain.proj, softmax.proj = nn.Identity(), nn.Identity()
    model.blocks[0].attn, model.blocks[1].attn = softmax, plain
    swap_attention(model)
    x = normal(2, 17, 24, seed=0)
    gated, ungated = (block.attn(x) for block in model.blocks)
    torch.testing.assert_close(gated, ungated * softmax.gate(x).sigmoid())


def test_dropout_behind_the_attention_and_the_mode_are_kept():
    model = vit(proj_drop_rate=1.0)
    swap_attention(model, blocks=[0])
    assert not any(module.training for module in model.modules())
    model.train()
    swap_attention(model, blocks=[1])
    assert all(module.training for module in model.modules())
    for block in model.blocks:
        assert not block.attn(normal(2, 17, 24, seed=0)).any()


def test_landmarks_are_each_blocks_own():
    model = vit()
    swap_attention(model, landmarks=ConvLandmarks(8, 2).double())
    first, second = (block.attn.landmarks.conv.weight for block in model.blocks)
    assert first is not second
    assert torch.equal(first, second)
    assert model(images()).isfinite().all()


def test_norms_of_two_kinds_are_left_alone():
    model = vit(qk_norm=True)
    model.blocks[0].attn.k_norm = nn.Identity()
    report = swap_attention(model)
    assert report.left_alone == {
        "blocks.0.attn": "q_norm and k_norm are of different kinds and cannot be tied"
    }
    assert list(report.swapped) == ["blocks.1.attn"]


@pytest.mark.parametrize(
    ("model", "options", "error", "reason"),
    [
        ("beit_base_patch16_224", {}, TypeError, "must be a timm VisionTransformer, got Beit"),
        ("vit_pwee_patch16_reg1_gap_256", {}, ValueError, "ParallelScalingBlock has no"),
        ("vit_tiny_patch16_224", {"attn_layer": "diff"}, ValueError, "Block has no"),
        ("vit_tiny_patch16_224", {"patch_drop_rate": 0.5}, ValueError, "drops patches"),
    ],
)
def test_models_that_are_not_understood_are_refused(model, options, error, reason):
    model = timm.create_model(model, depth=1, img_size=64, embed_dim=48, num_heads=2, **options)
    with pytest.raises(error, match=reason):
        swap_attention(model)


@pytest.mark.parametrize(
    ("options", "error", "reason"),
    [
        ({"blocks": [2]}, ValueError, r"from 0 to 1, got \[2\]"),
        ({"landmarks": 49}, TypeError, "must be a LandmarkSampler"),
        ({"normalization": "rows"}, ValueError, "normalization must be one of"),
        ({"impl": "cuda"}, ValueError, "impl must be one of"),
        ({"pinv": "exact"}, ValueError, "pinv must be one of"),
    ],
)
def test_a_refused_swap_changes_nothing(options, error, reason):
    model = vit()
    with pytest.raises(error, match=reason):
        swap_attention(model, **options)
    assert all(type(block.attn) is Attention for block in model.blocks)
    assert not model.patch_embed._forward_hooks


def test_checkpointing_refuses_images_of_another_size():
    model = timm.create_model("vit_tiny_patch16_224", depth=1, dynamic_img_size=True, num_classes=3)
    swap_attention(model, landmarks=AvgPoolLandmarks(4))
    model.set_grad_checkpointing()
    model(torch.randn(1, 3, 32, 64))
    model(torch.randn(1, 3, 32, 64)).sum().backward()
    with pytest.raises(ValueError, match=r"one size: their grid was \(2, 4\) and is \(4, 2\)"):
        model(torch.randn(1, 3, 64, 32))
    model.set_grad_checkpointing(False)
    assert model(torch.randn(1, 3, 64, 32)).shape == (1, 3)
