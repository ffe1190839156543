"""The backbones: sizes as published, and their output."""

import re

import pytest
import timm
import torch
from support.paths import ROOT
from torch import nn

# Examples are no part of the installation; what is installed goes before what lies here.
from examples.imagenet.macs import count_macs
from examples.imagenet.table import PUBLISHED_ACCURACY, count_parameters, model_table
from examples.models.registry import MODELS
from examples.models.stages import Stage
from softattn import SoftmaxFreeAttention

README = (ROOT / "examples" / "README.md").read_text()
PUBLISHED_PARAMETERS = {"tiny": 13e6, "small": 24e6, "medium": 45e6, "large": 64e6, "huge": 87e6}
PUBLISHED_MACS = {"tiny": 1.9e9, "small": 3.3e9, "medium": 7.2e9, "large": 11.0e9, "huge": 16.3e9}


def small_model(name: str = "soft_tiny", **options) -> nn.Module:
    """One block a stage."""
    return timm.create_model(name, depths=(1, 1, 1, 1), num_classes=10, **options)


def gradients(model: nn.Module, images: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    model(images).square().sum().backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("name", MODELS)
def test_parameters_are_as_many_as_published(name):
    published = PUBLISHED_PARAMETERS[name.rpartition("_")[2]]
    assert count_parameters(name) == pytest.approx(published, rel=0.02)


@pytest.mark.parametrize("size", PUBLISHED_MACS)
def test_multiply_adds_are_as_many_as_published(size):
    assert count_macs(f"soft_{size}").rest == pytest.approx(PUBLISHED_MACS[size], rel=0.05)


def test_inverses_of_the_published_steps_cost_twice_those_of_minimax():
    macs = count_macs("soft_tiny")
    assert macs.grams == {49: 1 * 2 + 2 * 4 + 3 * 10}
    assert macs.inverses("soft") == macs.grams[49] * 20 * 2 * 49**3
    assert macs.inverses("minimax") == macs.inverses("soft") / 2


def test_table_has_all_ten_and_the_readme_repeats_it():
    rows = list(zip(*(column.cells for column in model_table().columns), strict=True))
    assert [row[0] for row in rows] == MODELS == list(PUBLISHED_ACCURACY)
    for plain, normalised in zip(rows[:5], rows[5:], strict=True):
        line = next(line for line in README.splitlines() if line.startswith(f"| `{plain[0]}`"))
        assert line.endswith(" | ".join(("", *plain[1:], normalised[-1], "")).rstrip())


def test_the_readme_runs():
    for block in re.findall(r"```python\n(.*?)```", README, re.S):
        exec(block, {})


@pytest.mark.parametrize("name", ["soft_tiny", "soft_norm_tiny"])
@pytest.mark.parametrize("size", [(224, 224), (97, 160), (29, 33)])
def test_any_input_size(name, size):
    model = small_model(name).eval()
    with torch.no_grad():
        logits = model(torch.randn(2, 3, *size))
    assert logits.shape == (2, 10)
    assert logits.isfinite().all()


@pytest.mark.parametrize("landmarks", ["conv_pad", "avg", "kmeans"])
def test_the_smallest_images(landmarks):
    model = small_model(landmarks=landmarks).eval()
    assert model(torch.randn(1, 3, 1, 5)).isfinite().all()


def test_paddings_of_the_landmarks_agree_where_the_stride_divides():
    cropped = small_model().eval()
    padded = small_model(landmarks="conv_pad").eval()
    padded.load_state_dict(cropped.state_dict())
    with torch.no_grad():
        for size, agree in ((64, True), (80, False)):
            images = torch.randn(1, 3, size, size)
            assert torch.equal(cropped(images), padded(images)) == agree


def test_the_attention_has_the_near_field_that_is_asked_for():
    model = small_model(landmarks="kmeans", near_field=16, normalization="token")
    layers = [layer for layer in model.modules() if isinstance(layer, SoftmaxFreeAttention)]
    assert layers and all(layer.near_field == 16 for layer in layers)
    model(torch.randn(1, 3, 64, 96)).sum().backward()


def test_an_unknown_sampler_is_refused():
    with pytest.raises(ValueError, match="conv_pad"):
        small_model(landmarks="max")


def test_classifier_can_be_replaced():
    model = small_model(drop_rate=0.5).eval()
    tokens = model.forward_features(torch.randn(2, 3, 64, 96))
    assert tokens.shape == (2, 1 + 2 * 3, model.num_features)
    assert model.forward_head(tokens, pre_logits=True).shape == (2, model.num_features)
    model.reset_classifier(3)
    assert model.get_classifier().weight.shape == (3, model.num_features)
    assert model.forward_head(tokens).shape == (2, 3)
    model.reset_classifier(0, "avg")
    torch.testing.assert_close(model.forward_head(tokens), tokens[:, 1:].mean(1))
    model.reset_classifier(0, "")
    assert model.forward_head(tokens) is tokens


def test_feature_maps():
    torch.manual_seed(1)
    model = small_model().eval()
    backbone = small_model(features_only=True).eval()
    backbone.model.load_state_dict(model.state_dict(), strict=False)
    images = torch.randn(2, 3, 70, 100)
    with torch.no_grad():
        maps = backbone(images)
        tokens, same_maps = model.forward_intermediates(images, norm=True)
    assert backbone.feature_info.reduction() == [4, 8, 16, 32]
    assert backbone.feature_info.channels() == [x.shape[1] for x in maps]
    assert [x.shape[2:] for x in maps] == [(18, 25), (9, 13), (5, 7), (3, 4)]
    assert all(map(torch.equal, maps[:3], same_maps))
    assert torch.equal(same_maps[3].flatten(2).mT, tokens[:, 1:])
    torch.testing.assert_close(model.norm(maps[3].movedim(1, -1)).movedim(-1, 1), same_maps[3])
    assert torch.equal(tokens, model.forward_features(images))


def test_feature_maps_of_the_first_stages_need_no_other():
    backbone = small_model(features_only=True, out_indices=(0, 2))
    maps = backbone(torch.randn(1, 3, 64, 64))
    assert [tuple(x.shape) for x in maps] == [(1, 64, 16, 16), (1, 320, 4, 4)]
    sum(x.sum() for x in maps).backward()
    assert all(parameter.grad is not None for parameter in backbone.parameters())
    model = small_model()
    last, maps = model.forward_intermediates(torch.randn(1, 3, 64, 64), [1], stop_early=True)
    assert last is maps[0]


def test_gradient_checkpointing_changes_no_gradient():
    model = small_model().eval()
    images = torch.randn(1, 3, 64, 64)
    runs = []
    for stage in model.stages:
        stage.blocks[0].mlp.register_forward_pre_hook(lambda *_: runs.append(1))
    expected = gradients(model, images)
    assert len(runs) == 4
    model.set_grad_checkpointing()
    actual = gradients(model, images)
    assert len(runs) == 4 + 8
    for name in expected:
        torch.testing.assert_close(actual[name], expected[name], msg=name)


def test_stochastic_depth_grows_linearly_and_rests_in_evaluation():
    model = timm.create_model("soft_tiny", drop_path_rate=0.7)
    rates = [block.drop_path1.drop_prob for stage in model.stages for block in stage.blocks]
    assert rates == pytest.approx([0.1 * block for block in range(8)])
    images = torch.randn(2, 3, 32, 32)
    assert not torch.equal(model(images), model(images))
    model.eval()
    assert torch.equal(model(images), model(images))


def test_norms_have_the_published_epsilons():
    epsilons = {
        name: module.eps
        for name, module in small_model().named_modules()
        if isinstance(module, nn.LayerNorm)
    }
    softmax = {name for name in epsilons if name == "norm" or name.startswith("stages.3")}
    assert {epsilons[name] for name in softmax} == {1e-6}
    assert {epsilons[name] for name in epsilons.keys() - softmax} == {1e-5}


def test_positions_and_the_class_token_are_not_decayed():
    assert small_model().no_weight_decay() == {
        *(f"stages.{stage}.pos_embed" for stage in range(4)),
        "stages.3.cls_token",
    }


def test_every_stage_has_its_own_positions():
    images = torch.zeros(1, 3, 64, 64)
    model = small_model().eval()
    for stage in model.stages:
        assert isinstance(stage, Stage)
        before = model(images)
        nn.init.normal_(stage.pos_embed)
        assert not torch.equal(before, model(images))


def test_half_precision_and_channels_last():
    model = small_model().eval()
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        logits = model(images)
        laid_out = model.to(memory_format=torch.channels_last)(
            images.to(memory_format=torch.channels_last)
        )
        with torch.autocast("cpu", torch.bfloat16):
            half = model(images)
    torch.testing.assert_close(laid_out, logits)
    assert (half - logits).abs().max() <= 0.05 * logits.abs().max()
