"""SoftmaxFreeAttention: grids, prefix tokens, padding, context, state."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.strategies import NORMALIZATIONS, normal, padding_masks, seeds
from torch.autograd import gradcheck

import softattn
from softattn import AvgPoolLandmarks, ConvLandmarks, SoftmaxFreeAttention

GRIDS = [(13,), (5, 8), (7, 3), (1, 1), (3, 4, 5)]


def layer(**options) -> SoftmaxFreeAttention:
    torch.manual_seed(1)
    options = {"landmarks": AvgPoolLandmarks(4), "dtype": torch.float64} | options
    return SoftmaxFreeAttention(6, 2, **options)


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_maps_are_their_flattened_tokens(grid, normalization):
    attention = layer(normalization=normalization, value_conv=(3,) * len(grid))
    maps = normal(2, *grid, 6, seed=0)
    tokens = maps.flatten(1, -2)
    output = attention(maps)
    assert output.shape == maps.shape
    torch.testing.assert_close(output.flatten(1, -2), attention(tokens, grid=grid))


@pytest.mark.parametrize("grid", GRIDS)
def test_forward_is_its_parts(grid):
    attention = layer(value_conv=(3,) * len(grid), normalization="token")
    x = normal(2, torch.Size(grid).numel(), 6, seed=0)

    def heads(projection):
        return projection(x).unflatten(-1, (2, 3)).transpose(1, 2)

    keys, values = heads(attention.qk_proj), heads(attention.v_proj)
    landmarks = attention.landmarks(keys, grid)
    attended = softattn.softmax_free_attention(keys, None, values, landmarks, normalization="token")
    for feature in range(3):
        maps = values[..., feature].unflatten(-1, grid)
        local = torch.stack(
            [convolve(maps[:, head], attention.value_conv.weight[head, 0]) for head in range(2)],
            1,
        )
        attended[..., feature] += local.flatten(2)
    expected = attention.out_proj(attended.transpose(1, 2).flatten(2))
    torch.testing.assert_close(attention(x, grid=grid), expected)


def convolve(maps, kernel):
    """Cross-correlation with zero padding, one offset at a time."""
    total = torch.zeros_like(maps)
    padded = torch.nn.functional.pad(maps, (1, 1) * kernel.ndim)
    for offset in torch.cartesian_prod(*[torch.arange(3)] * kernel.ndim).view(-1, kernel.ndim):
        window = padded
        for dim, (start, size) in enumerate(zip(offset.tolist(), maps.shape[1:], strict=True), 1):
            window = window.narrow(dim, start, size)
        total += kernel[tuple(offset.tolist())] * window
    return total


@pytest.mark.parametrize("sampler", ["average", "convolution"])
def test_prefix_tokens_are_queries_and_keys_but_not_on_the_grid(sampler):
    landmarks = AvgPoolLandmarks(4) if sampler == "average" else ConvLandmarks(3, 2).double()
    attention = layer(landmarks=landmarks, value_conv=3, normalization="token")
    grid, prefix = (4, 6), 2
    x = normal(2, 26, 6, seed=0)
    output = attention(x, grid=grid, num_prefix_tokens=prefix)
    assert output.shape == x.shape

    def heads(projection, tokens):
        return projection(tokens).unflatten(-1, (2, 3)).transpose(1, 2)

    keys, values = heads(attention.qk_proj, x), heads(attention.v_proj, x)
    attended = softattn.softmax_free_attention(
        keys, None, values, attention.landmarks(keys[:, :, 2:], grid), normalization="token"
    )
    expected = attention.out_proj(attended.transpose(1, 2).flatten(2))
    torch.testing.assert_close(output[:, :prefix], expected[:, :prefix])
    changed = x.clone()
    changed[:, 0] += 1
    assert (attention(changed, grid=grid, num_prefix_tokens=prefix) - output)[:, 5:].abs().max() > 0


@given(
    data=st.data(),
    n=st.integers(1, 16),
    seed=seeds,
    normalization=st.sampled_from(NORMALIZATIONS),
    sampler=st.sampled_from(["average", "convolution"]),
    prefix=st.integers(0, 2),
    crossed=st.booleans(),
)
def test_output_of_a_padded_sequence_is_that_without_padding(
    data, n, seed, normalization, sampler, prefix, crossed
):
    landmarks = AvgPoolLandmarks(4) if sampler == "average" else ConvLandmarks(3, (3,)).double()
    conv = 0 if crossed else (5,)
    attention = layer(landmarks=landmarks, normalization=normalization, value_conv=conv)
    attended = normal(3, prefix + n, 6, seed=seed)
    mask = data.draw(padding_masks(3, prefix + n))
    mask[:, :prefix] = mask[:, :1]
    filled = attended.masked_fill(mask[..., None], float("nan"))
    queries = normal(3, 4, 6, seed=seed + 1)

    def attend(tokens, queries, mask=None):
        options = {"num_prefix_tokens": prefix, "key_padding_mask": mask}
        if crossed:
            return attention(queries, tokens, **options)
        return attention(tokens, **options)

    padded = attend(filled, queries, mask)
    assert padded.isfinite().all()
    for i in range(3):
        kept = ~mask[i]
        if not kept[prefix:].any() or (prefix and not kept[0]):
            if mask[i].all():
                assert torch.all(padded[i] == 0)
            continue
        alone = attend(attended[i : i + 1, kept], queries[i : i + 1])
        actual = padded[i : i + 1] if crossed else padded[i : i + 1, kept]
        torch.testing.assert_close(actual, alone, rtol=1e-9, atol=1e-9)
        if not crossed:
            assert torch.all(padded[i, mask[i]] == 0)


@given(data=st.data(), seed=seeds, sampler=st.sampled_from(["average", "convolution"]))
def test_padding_of_a_map_is_ignored(data, seed, sampler):
    landmarks = AvgPoolLandmarks(4) if sampler == "average" else ConvLandmarks(3, 2).double()
    attention = layer(landmarks=landmarks, value_conv=3, normalization="token")
    maps = normal(2, 5, 4, 6, seed=seed).requires_grad_()
    mask = data.draw(padding_masks(2, 20)).view(2, 5, 4)

    def run(filling):
        attention.zero_grad()
        output = attention(maps.masked_fill(mask[..., None], filling), key_padding_mask=mask)
        output.square().sum().backward()
        return output, *(p.grad.clone() for p in attention.parameters())

    for nan, other in zip(run(float("nan")), run(1e3), strict=True):
        torch.testing.assert_close(nan, other, rtol=0, atol=0)
        assert nan.isfinite().all()
    flat = attention(maps.detach(), key_padding_mask=mask.flatten(1))
    torch.testing.assert_close(flat, run(0.0)[0], rtol=0, atol=0)
    assert torch.all(flat[mask] == 0)


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_context(normalization):
    attention = layer(normalization=normalization)
    x, context = normal(2, 5, 6, seed=0), normal(2, 4, 5, 6, seed=1)
    output = attention(x, context)
    assert output.shape == x.shape
    rows = [attention(x[:, i : i + 1], context) for i in range(5)]
    torch.testing.assert_close(output, torch.cat(rows, 1))
    torch.testing.assert_close(output, attention(x, context.flatten(1, 2), grid=(4, 5)))
    assert attention(normal(2, 3, 3, 6, seed=2), context).shape == (2, 3, 3, 6)


@pytest.mark.parametrize("sampler", ["average", "convolution"])
@pytest.mark.parametrize("shape", [(0, 4, 4, 6), (2, 0, 4, 6), (2, 4, 0, 6)])
def test_empty_batches_and_maps(sampler, shape):
    landmarks = AvgPoolLandmarks(4) if sampler == "average" else ConvLandmarks(3, 2).double()
    attention = layer(landmarks=landmarks, value_conv=3)
    x = torch.zeros(shape, dtype=torch.float64)
    assert attention(x).shape == shape
    mask = torch.zeros(shape[:-1], dtype=torch.bool)
    assert attention(x, key_padding_mask=mask).shape == shape


def test_prefix_tokens_alone():
    attention = layer(landmarks=ConvLandmarks(3, (2,)).double(), value_conv=(3,))
    x = normal(2, 3, 6, seed=0)
    assert attention(x, num_prefix_tokens=3).isfinite().all()


def test_padded_prefix_token_keeps_its_place():
    attention = layer(normalization="token")
    x = normal(1, 10, 6, seed=0)
    mask = (torch.arange(10) == 0)[None]
    output = attention(x, key_padding_mask=mask, num_prefix_tokens=1)
    assert torch.all(output[:, 0] == 0)
    torch.testing.assert_close(output[:, 1:], attention(x[:, 1:]))


def test_output_for_a_wholly_padded_context_is_zero():
    attention = layer(normalization="landmark")
    x, context = normal(2, 3, 6, seed=0), normal(2, 5, 6, seed=1)
    mask = torch.tensor([[True] * 5, [False] * 5])
    output = attention(x, context, key_padding_mask=mask)
    assert torch.all(output[0] == 0)
    torch.testing.assert_close(output[1], attention(x, context)[1])


def test_context_that_is_x_is_self_attention():
    attention = layer(normalization="token")
    x = normal(2, 9, 6, seed=0)
    torch.testing.assert_close(attention(x, x), attention(x), rtol=0, atol=0)


def test_gradients_of_every_parameter():
    attention = layer(landmarks=ConvLandmarks(3, 2).double(), value_conv=3)
    maps = normal(1, 3, 4, 6, seed=0).requires_grad_()
    parameters = dict(attention.named_parameters())

    def run(maps, *values):
        state = dict(zip(parameters, values, strict=True))
        return torch.func.functional_call(attention, state, (maps,))

    assert gradcheck(run, (maps, *parameters.values()), fast_mode=True)


def test_parameter_names():
    attention = SoftmaxFreeAttention(8, 2, landmarks=ConvLandmarks(4, 2), value_conv=3)
    assert list(attention.state_dict()) == [
        *(
            f"{name}.{kind}"
            for name in ("qk_proj", "v_proj", "out_proj")
            for kind in ("weight", "bias")
        ),
        "landmarks.conv.weight",
        "landmarks.norm.weight",
        "landmarks.norm.bias",
        "value_conv.weight",
    ]


def test_defaults():
    attention = SoftmaxFreeAttention(8, 2)
    assert isinstance(attention.landmarks, AvgPoolLandmarks)
    assert attention.landmarks.num_landmarks == 49
    assert attention.pinv.method == "minimax"
    assert attention.normalization == "token"
    assert attention.value_conv is None
    assert attention.head_dim == 4
    assert SoftmaxFreeAttention(8, 3, head_dim=5).qk_proj.out_features == 15
    assert SoftmaxFreeAttention(8, 2, bias=False).qk_proj.bias is None


def test_repr():
    text = repr(SoftmaxFreeAttention(8, 2, normalization="token", value_conv=5))
    for part in (
        "embed_dim=8, num_heads=2, head_dim=4, normalization='token', "
        "scale=None, qk_norm=False, near_field=1, impl='auto'",
        "NewtonPinv(method='minimax', ridge=0.01)",
        "AvgPoolLandmarks(num_landmarks=49)",
        "kernel_size=(5, 5)",
    ):
        assert part in text


def test_state_loads_across_dtypes_and_copies():
    source = layer(dtype=torch.float32, value_conv=3)
    target = layer(dtype=torch.float64, value_conv=3)
    target.load_state_dict(source.state_dict())
    x = torch.randn(1, 4, 4, 6)
    torch.testing.assert_close(target(x.double()).float(), source(x))
    torch.testing.assert_close(copy.deepcopy(source)(x), source(x), rtol=0, atol=0)


def test_state_loads_into_a_layer_made_on_meta():
    source = layer(dtype=torch.float32)
    with torch.device("meta"):
        target = layer(dtype=torch.float32)
    target.load_state_dict(source.state_dict(), assign=True)
    x = torch.randn(1, 9, 6)
    torch.testing.assert_close(target(x), source(x), rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_autocast_rounds_inputs_and_outputs_alone(dtype, normalization):
    attention = layer(dtype=torch.float32, normalization=normalization, value_conv=3)
    x = torch.randn(2, 6, 6, 6, requires_grad=True)
    exact = attention(x)
    with torch.autocast("cpu", dtype=dtype):
        rounded = attention(x)
        rounded.float().sum().backward()
    assert rounded.dtype == dtype
    assert x.grad.isfinite().all()
    error = (rounded.float() - exact).abs().max() / exact.abs().max()
    assert error < 40 * torch.finfo(dtype).eps


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_shapes_without_numbers(normalization):
    layer = SoftmaxFreeAttention(16, 2, normalization=normalization, device="meta")
    output = layer(torch.empty(2, 4, 5, 16, device="meta"))
    assert output.shape == (2, 4, 5, 16)
    assert output.device.type == "meta"


def test_scale_is_that_of_the_kernel():
    x = normal(2, 9, 6, seed=0)
    attention = layer(scale=0.3)
    wide = layer(scale=0.3 * 4)
    wide.load_state_dict(attention.state_dict())
    with torch.no_grad():
        for parameter in attention.qk_proj.parameters():
            parameter.mul_(2)
    torch.testing.assert_close(attention(x), wide(x))
    factors = attention.attention_factors(x)
    values = attention._heads(attention.v_proj, x)
    attended = factors.rows(range(9)) @ values
    output = attention.out_proj(attended.transpose(1, 2).flatten(2))
    torch.testing.assert_close(output, attention(x))


def test_scale_must_be_positive():
    with pytest.raises(ValueError, match="scale must be a positive finite number or None, got -1"):
        layer(scale=-1)


@pytest.mark.parametrize("packed", [False, True])
def test_with_qk_norm_token_is_softmax(packed):
    attention, other = (layer(qk_norm=True, normalization=n) for n in ("token", "softmax"))
    other.load_state_dict(attention.state_dict())
    x = normal(2, 9, 6, seed=0)
    options = {}
    if packed:
        x, options = x.flatten(0, 1), {"cu_seqlens": torch.tensor([0, 9, 18])}
    torch.testing.assert_close(attention(x, **options), other(x, **options))
    torch.testing.assert_close(attention(x, **options), attention(x.clone(), **options))
    with torch.no_grad():
        scaled = attention.qk_proj
        before = attention(x, **options)
        for parameter in scaled.parameters():
            parameter.mul_(3)
    torch.testing.assert_close(attention(x, **options), before, rtol=1e-5, atol=1e-6)
