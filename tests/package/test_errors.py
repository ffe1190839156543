"""Bad calls: what was expected, what came, what to do."""

import pytest
import torch

import softattn
from softattn import AvgPoolLandmarks, ConvLandmarks, SoftmaxFreeAttention

TOKENS = torch.randn(2, 2, 6, 4)
LANDMARKS = torch.randn(2, 2, 3, 4)


def attend(query=TOKENS, key=None, value=TOKENS, landmarks=LANDMARKS, **options):
    return softattn.softmax_free_attention(query, key, value, landmarks, **options)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"query": TOKENS.long()}, TypeError, r"query must be floating point .* got torch\.int64"),
        ({"query": [1.0]}, TypeError, r"query must be a torch\.Tensor, got list"),
        (
            {"query": TOKENS[0]},
            ValueError,
            r"\(batch, heads, tokens, features\), got shape \(2, 6, 4\)",
        ),
        ({"query": TOKENS.double()}, TypeError, r"one dtype, got query torch\.float64"),
        ({"landmarks": LANDMARKS.half()}, TypeError, r"landmarks torch\.float16"),
        ({"value": TOKENS.double()}, TypeError, r"value torch\.float64"),
        ({"landmarks": LANDMARKS.to("meta")}, ValueError, "one device, got .*landmarks on meta"),
        (
            {"landmarks": LANDMARKS[..., :3]},
            ValueError,
            r"agree in batch, heads and features, .*landmarks \(2, 2, 3, 3\)",
        ),
        ({"landmarks": LANDMARKS[:1]}, ValueError, r"landmarks \(1, 2, 3, 4\)"),
        ({"key": TOKENS[:, :1]}, ValueError, r"key \(2, 1, 6, 4\)"),
        (
            {"value": TOKENS[:, :, :5]},
            ValueError,
            r"tokens of the keys, \(2, 2, 6\); got shape \(2, 2, 5, 4\)",
        ),
        ({"key_padding_mask": torch.zeros(2, 6)}, TypeError, r"bool tensor.*got torch\.float32"),
        ({"key_padding_mask": [[True]]}, TypeError, "bool tensor.*got list"),
        (
            {"key_padding_mask": torch.zeros(2, 5, dtype=torch.bool)},
            ValueError,
            r"= \(2, 6\), got shape \(2, 5\)",
        ),
        (
            {"key_padding_mask": torch.zeros(2, 6, dtype=torch.bool, device="meta")},
            ValueError,
            "must be on cpu",
        ),
        (
            {"landmark_padding_mask": torch.zeros(2, 6, dtype=torch.bool)},
            ValueError,
            r"= \(2, 3\), got shape \(2, 6\)",
        ),
        (
            {"normalization": "rows"},
            ValueError,
            "normalization must be one of 'none', 'landmark', 'token', 'softmax', got 'rows'",
        ),
        ({"impl": "cuda"}, ValueError, "impl must be one of 'auto', 'eager', 'triton', got 'cuda'"),
        ({"scale": 0}, ValueError, "scale must be a positive finite number or None, got 0"),
        ({"scale": float("nan")}, ValueError, "scale must be"),
        ({"is_causal": True}, ValueError, "causal attention is not offered: .* see the future"),
        ({"pinv": "svd"}, ValueError, "pinv must be one of"),
        ({"pinv": 3}, TypeError, "pinv must be a callable"),
    ],
)
def test_softmax_free_attention(arguments, error, message):
    with pytest.raises(error, match=message):
        attend(**arguments)


def test_triton_where_it_cannot_run(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    message = "impl='triton' was asked for, but the tensors are on cpu, .* use impl='eager'"
    with pytest.raises(ValueError, match=message):
        attend(impl="triton")
    layer = SoftmaxFreeAttention(8, 2, impl="triton")
    with pytest.raises(ValueError, match=message):
        layer(torch.randn(1, 9, 8))
    with pytest.raises(ValueError, match=message):
        softattn.gaussian_attention(TOKENS, None, TOKENS, impl="triton")


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((TOKENS.long(), None, TOKENS), TypeError, "floating point"),
        ((TOKENS, TOKENS[..., :3], TOKENS), ValueError, "agree in batch, heads and features"),
        ((TOKENS, None, TOKENS[:, :, :3]), ValueError, "tokens of the keys"),
    ],
)
def test_gaussian_attention(arguments, error, message):
    with pytest.raises(error, match=message):
        softattn.gaussian_attention(*arguments)


def test_gaussian_kernel():
    with pytest.raises(TypeError, match="floating point"):
        softattn.gaussian_kernel(TOKENS.int(), TOKENS)
    with pytest.raises(ValueError, match="impl must be one of"):
        softattn.gaussian_kernel(TOKENS, TOKENS, impl="numpy")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_heads": 3}, "divisible by num_heads, got 8 and 3; or give head_dim"),
        ({"num_heads": 0}, "must be positive, got 8, 0 and None"),
        ({"normalization": "rows"}, "normalization must be one of"),
        ({"impl": "cuda"}, "impl must be one of"),
        ({"value_conv": 4}, "value_conv must be odd and positive"),
        ({"value_conv": (3, 3, 3, 3)}, "value_conv must be odd and positive"),
        ({"pinv": "lu"}, "pinv must be one of"),
        ({"head_dim": -1}, "must be positive, got 8, 2 and -1"),
    ],
)
def test_layer_options(options, message):
    with pytest.raises(ValueError, match=message):
        SoftmaxFreeAttention(**({"embed_dim": 8, "num_heads": 2} | options))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"landmarks": 49}, r"landmarks must be a LandmarkSampler such as .*, got 49"),
        ({"landmarks": AvgPoolLandmarks}, "landmarks must be a LandmarkSampler"),
        ({"pinv": softattn.NewtonPinv}, "pinv must be a callable such as .*, got NewtonPinv"),
        ({"value_conv": 3.0}, r"value_conv must be an int or a sequence of ints, got 3\.0"),
    ],
)
def test_layer_options_of_the_wrong_kind(options, message):
    with pytest.raises(TypeError, match=message):
        SoftmaxFreeAttention(8, 2, **options)


def test_sampler_options_of_the_wrong_kind():
    with pytest.raises(TypeError, match="num_landmarks must be an int or a sequence of ints"):
        AvgPoolLandmarks(1.5)
    with pytest.raises(TypeError, match="stride must be an int or a sequence of ints"):
        ConvLandmarks(4, 2.0)


def test_inverse_of_the_wrong_shape_is_refused():
    with pytest.raises(ValueError, match=r"inverses of the shape of its input, \(2, 2, 3, 3\)"):
        attend(pinv=lambda a: a[..., :1])


X = torch.randn(2, 12, 8)
MAP = torch.randn(2, 3, 4, 8)


@pytest.mark.parametrize(
    ("layer", "arguments", "options", "error", "message"),
    [
        ({}, (X.long(),), {}, TypeError, "x must be floating point"),
        ({}, (X[0],), {}, ValueError, r"x must be \(batch, tokens, 8\).*got shape \(12, 8\)"),
        ({}, (X[..., :7],), {}, ValueError, r"got shape \(2, 12, 7\)"),
        ({}, (X.double(),), {}, TypeError, r"x is torch\.float64 and the layer torch\.float32"),
        ({}, (X.to("meta"),), {}, ValueError, "x is on meta and the layer on cpu"),
        (
            {},
            (X, X[..., :5]),
            {},
            ValueError,
            r"context must be .* got shape \(2, 12, 5\); .*SoftmaxFreeMultiheadAttention\(kdim=5\)",
        ),
        ({}, (X,), {"grid": (3, 5)}, ValueError, r"grid \(3, 5\) holds 15 tokens, got 12"),
        ({}, (X,), {"grid": (3, 4), "num_prefix_tokens": 1}, ValueError, "holds 12 tokens, got 11"),
        ({}, (X,), {"grid": (1, 1, 3, 4)}, ValueError, "one, two or three dimensions"),
        ({}, (X,), {"grid": (-3, -4)}, ValueError, "one, two or three dimensions"),
        ({}, (X,), {"grid": (3.0, 4.0)}, TypeError, "grid must be an int or a sequence of ints"),
        ({}, (MAP,), {"key_padding_mask": [True]}, TypeError, "must be a bool tensor"),
        ({}, (X,), {"num_prefix_tokens": 13}, ValueError, "between 0 and the 12 tokens, got 13"),
        ({}, (MAP,), {"grid": (4, 3)}, ValueError, "is not that of the map"),
        ({}, (MAP,), {"num_prefix_tokens": 1}, ValueError, "no place for prefix tokens"),
        (
            {},
            (X,),
            {"key_padding_mask": torch.zeros(2, 11, dtype=torch.bool)},
            ValueError,
            r"\(2, 12\), got shape \(2, 11\)",
        ),
        ({}, (X,), {"key_padding_mask": torch.zeros(2, 12)}, TypeError, "must be a bool tensor"),
        ({}, (X,), {"is_causal": True}, ValueError, "causal attention is not offered"),
        (
            {"value_conv": 3},
            (X,),
            {},
            ValueError,
            r"value_conv=\(3, 3\) is for grids of 2 dimensions",
        ),
        (
            {"value_conv": (3,)},
            (X, X.clone()),
            {},
            ValueError,
            "in cross-attention the values are not at",
        ),
        (
            {"landmarks": ConvLandmarks(4, 2)},
            (X,),
            {},
            ValueError,
            r"stride=\(2, 2\) is for grids of 2",
        ),
        ({"landmarks": AvgPoolLandmarks((2, 2))}, (X,), {}, ValueError, "has 2 dimensions"),
    ],
)
def test_layer_calls(layer, arguments, options, error, message):
    attention = SoftmaxFreeAttention(8, 2, **layer)
    with pytest.raises(error, match=message):
        attention(*arguments, **options)


@pytest.mark.parametrize(
    ("shape", "order"), [((1, 8, 5, 6), (0, 2, 3, 1)), ((1, 8, 4, 5, 6), (0, 2, 3, 4, 1))]
)
def test_channels_first_map_is_told_to_permute(shape, order):
    layer = SoftmaxFreeAttention(8, 2)
    x = torch.randn(shape)
    with pytest.raises(ValueError) as error:
        layer(x)
    assert f"x.permute{order}" in str(error.value)
    assert layer(x.permute(order)).shape == x.permute(order).shape


def test_convolution_for_another_head_dim():
    layer = SoftmaxFreeAttention(8, 2, landmarks=ConvLandmarks(8, 2))
    with pytest.raises(ValueError, match=r"must have 8 features.*\(1, 2, 16, 4\).*head_dim=4"):
        layer(torch.randn(1, 4, 4, 8))
