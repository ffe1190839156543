"""The backbones have the interface of timm's models: extractors, layer decay, sizes and formats."""

import pytest
import timm
import torch
from timm.layers import get_notrace_functions, get_notrace_modules
from timm.optim import param_groups_layer_decay
from torch import nn
from torchvision.models.feature_extraction import create_feature_extractor

# Examples are no part of the installation; what is installed goes before what lies here.
# Examples are no part of the installation; what is installed goes before what lies here.
from examples.models.registry import FAMILIES

NAMES = [f"{family}_tiny" for family in FAMILIES]


def small_model(name: str = "soft_tiny", **options) -> nn.Module:
    """One block in each stage; always the same weights."""
    torch.manual_seed(0)
    return timm.create_model(name, depths=(1, 1, 1, 1), **options).eval()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("feature_cls", ["hook", "fx"])
def test_every_extractor_gives_the_same_maps(name, feature_cls):
    getter = small_model(name, features_only=True)
    extractor = small_model(name, features_only=True, feature_cls=feature_cls)
    images = torch.randn(2, 3, 70, 100)
    with torch.no_grad():
        expected, actual = getter(images), extractor(images)
    assert len(actual) == 4
    assert all(map(torch.equal, actual, expected))
    assert extractor.feature_info.channels() == [x.shape[1] for x in actual]


def test_gradients_pass_through_a_traced_model():
    extractor = small_model(features_only=True, feature_cls="fx").train()
    sum(x.square().sum() for x in extractor(torch.randn(2, 3, 64, 64))).backward()
    assert all(parameter.grad is not None for parameter in extractor.parameters())


def test_extractors_of_torchvision():
    model = small_model()
    extractor = create_feature_extractor(
        model,
        ["stages.1.blocks.0.mlp", "stages.3", "head"],
        tracer_kwargs={
            "leaf_modules": get_notrace_modules(),
            "autowrap_functions": get_notrace_functions(),
        },
    )
    images = torch.randn(1, 3, 50, 70)
    with torch.no_grad():
        features = extractor(images)
        assert torch.equal(features["head"], model(images))
        assert torch.equal(features["stages.3"], model.forward_intermediates(images)[1][3])
    assert features["stages.1.blocks.0.mlp"].shape == (1, 7, 9, 128)


def test_layer_decay_grows_from_the_stem_to_the_head():
    model = timm.create_model("soft_tiny", depths=(1, 2, 1, 1))
    names = {parameter: name for name, parameter in model.named_parameters()}
    scales = {
        names[parameter]: group["lr_scale"]
        for group in param_groups_layer_decay(model, layer_decay=0.5)
        for parameter in group["params"]
    }
    assert scales.keys() == set(names.values())
    layers = [
        ["stages.0.patch_embed.0.conv.weight", "stages.0.pos_embed"],
        ["stages.0.blocks.0.attn.qk_proj.weight"],
        [
            "stages.1.patch_embed.0.conv.weight",
            "stages.1.pos_embed",
            "stages.1.blocks.0.mlp.fc1.bias",
        ],
        ["stages.1.blocks.1.norm2.weight"],
        ["stages.2.blocks.0.attn.value_conv.weight"],
        ["stages.3.cls_token", "stages.3.blocks.0.attn.qkv.weight", "norm.weight"],
        ["head.weight"],
    ]
    for depth, layer in enumerate(layers):
        assert {scales[name] for name in layer} == {0.5 ** (len(layers) - 1 - depth)}


def test_coarse_groups_are_stages():
    model = small_model()
    groups = timm.models.group_parameters(model, model.group_matcher(coarse=True))
    stage = {name for name, _ in model.named_parameters() if name.startswith("stages.2.")}
    assert stage in [set(group) for group in groups.values()]


def test_another_input_size_changes_no_output_at_that_size():
    model = small_model()
    images = torch.randn(2, 3, 96, 200)
    with torch.no_grad():
        expected = model(images)
        model.set_input_size((96, 200))
        assert [tuple(stage.pos_embed.shape[1:3]) for stage in model.stages] == [
            (24, 50),
            (12, 25),
            (6, 13),
            (3, 7),
        ]
        assert torch.equal(model(images), expected)
        loaded = timm.create_model("soft_tiny", depths=(1, 1, 1, 1), img_size=(96, 200)).eval()
        loaded.load_state_dict(model.state_dict())
        assert torch.equal(loaded(images), expected)


def test_formats_of_feature_maps():
    images = torch.randn(2, 3, 70, 100)
    with torch.no_grad():
        maps = small_model(features_only=True)(images)
        for output_fmt, convert in (
            ("NHWC", lambda x: x.permute(0, 2, 3, 1)),
            ("NLC", lambda x: x.flatten(2).mT),
            ("NCL", lambda x: x.flatten(2)),
        ):
            converted = small_model(features_only=True, output_fmt=output_fmt)(images)
            assert all(map(torch.equal, converted, map(convert, maps)))
    with pytest.raises(ValueError, match=r"'NCHW', 'NHWC', .* got 'NWHC'"):
        small_model().forward_intermediates(images, output_fmt="NWHC")


def test_class_tokens_of_feature_maps():
    model = small_model()
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        tokens, pairs = model.forward_intermediates(images, return_prefix_tokens=True, norm=True)
        maps = model.forward_intermediates(images, norm=True, intermediates_only=True)
    assert [tuple(prefix.shape) for _, prefix in pairs] == [
        (2, 0, 64),
        (2, 0, 128),
        (2, 0, 320),
        (2, 1, 512),
    ]
    assert torch.equal(pairs[3][1], tokens[:, :1])
    assert all(torch.equal(x, alone) for (x, _), alone in zip(pairs, maps, strict=True))


def test_the_final_norm_of_feature_maps():
    images = torch.randn(2, 3, 64, 64)
    model = small_model()
    nn.init.normal_(model.norm.weight)
    normed = small_model(features_only=True, norm=True)
    normed.model.norm.load_state_dict(model.norm.state_dict())
    with torch.no_grad():
        maps, plain = normed(images), small_model(features_only=True)(images)
        tokens = model.forward_features(images)
    assert torch.equal(maps[3].flatten(2).mT, tokens[:, 1:])
    assert all(map(torch.equal, maps[:3], plain[:3]))
    assert not torch.equal(maps[3], plain[3])
    with pytest.raises(TypeError, match="norm"):
        small_model(norm=True)


@pytest.mark.parametrize("name", ["soft_tiny", "softmax_tiny"])
def test_dropout_after_projections(name):
    model = small_model(name, proj_drop_rate=0.5)
    for index, stage in enumerate(model.stages):
        shape = (1, 9, 512) if index == 3 else (1, 8, 8, 2**index * 64 if index < 2 else 320)
        x = torch.randn(shape)
        (block,) = stage.blocks
        for part in (block.attn, block.mlp):
            # What one part adds is dropped at random even if the other part adds nothing.
            other = block.mlp if part is block.attn else block.attn
            handle = other.register_forward_hook(lambda module, args, output: output * 0)
            assert torch.equal(block.eval()(x), block(x))
            assert not torch.equal(block.train()(x), block(x))
            handle.remove()


@pytest.mark.parametrize("name", NAMES)
def test_device_and_dtype(name):
    shapeless = timm.create_model(name, device="meta", dtype=torch.bfloat16)
    tensors = [*shapeless.parameters(), *shapeless.buffers()]
    assert all(tensor.is_meta for tensor in tensors)
    assert {tensor.dtype for tensor in tensors} == {torch.bfloat16, torch.int64}
    shapeless.reset_classifier(3)
    assert shapeless.head.weight.is_meta and shapeless.head.weight.dtype == torch.bfloat16
    double = small_model(name, dtype=torch.float64)
    logits = double(torch.randn(1, 3, 64, 64, dtype=torch.float64))
    assert logits.dtype == torch.float64


def test_export_takes_the_place_of_torchscript():
    model = small_model()
    images = torch.randn(2, 3, 64, 64)
    exported = torch.export.export(model, (images,)).module()
    with torch.no_grad():
        torch.testing.assert_close(exported(images), model(images))
