"""SoftmaxFreeMultiheadAttention: the interface of nn.MultiheadAttention, and where it is used."""

import copy
import functools
import inspect

import pytest
import torch
from support.strategies import NORMALIZATIONS, normal
from torch import distributed, nn
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.utils._pytree import tree_map_only
from torch.utils.checkpoint import checkpoint

from softattn import AvgPoolLandmarks, ConvLandmarks, SoftmaxFreeAttention
from softattn.integrations.torch import SoftmaxFreeMultiheadAttention, swap_attention


def layer(**options) -> SoftmaxFreeMultiheadAttention:
    torch.manual_seed(1)
    options = {
        "landmarks": AvgPoolLandmarks(4),
        "dtype": torch.float64,
        "batch_first": True,
    } | options
    return SoftmaxFreeMultiheadAttention(6, 2, **options)


def padding_of(*lengths: int, tokens: int) -> torch.Tensor:
    return torch.arange(tokens) >= torch.tensor(lengths)[:, None]


def encoder(**options) -> nn.TransformerEncoder:
    torch.manual_seed(1)
    options = {"dropout": 0.0, "batch_first": True, "dtype": torch.float64} | options
    return nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, **options), 2)


@pytest.mark.parametrize("method", ["__init__", "forward"])
def test_signature_begins_with_that_of_torch(method):
    theirs = inspect.signature(getattr(nn.MultiheadAttention, method)).parameters.values()
    ours = inspect.signature(getattr(SoftmaxFreeMultiheadAttention, method)).parameters.values()
    described = [(p.name, p.default, p.kind) for p in ours]
    assert described[: len(theirs)] == [(p.name, p.default, p.kind) for p in theirs]
    assert all(kind is inspect.Parameter.KEYWORD_ONLY for *_, kind in described[len(theirs) :])


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@pytest.mark.parametrize("padded", [False, True])
def test_self_attention_is_the_layers(normalization, padded):
    ours = layer(normalization=normalization)
    theirs = SoftmaxFreeAttention(
        6, 2, landmarks=AvgPoolLandmarks(4), normalization=normalization, dtype=torch.float64
    )
    theirs.load_state_dict(ours.state_dict())
    x = normal(3, 9, 6, seed=0)
    mask = padding_of(9, 5, 0, tokens=9) if padded else None
    output, weights = ours(x, x, x, key_padding_mask=mask, need_weights=False)
    assert weights is None
    torch.testing.assert_close(output, theirs(x, key_padding_mask=mask))


@pytest.mark.parametrize("crossed", [False, True])
def test_layouts_agree(crossed):
    batch_first, tokens_first = layer(), layer(batch_first=False)
    x = normal(2, 9, 6, seed=0)
    y = normal(2, 7, 6, seed=1) if crossed else x
    mask = padding_of(7, 4, tokens=7) if crossed else padding_of(9, 4, tokens=9)
    expected, expected_weights = batch_first(x, y, y, mask)
    swapped_x = x.transpose(0, 1)
    swapped_y = y.transpose(0, 1) if crossed else swapped_x
    output, weights = tokens_first(swapped_x, swapped_y, swapped_y, mask)
    torch.testing.assert_close(output.transpose(0, 1), expected)
    torch.testing.assert_close(weights, expected_weights)
    for either in (batch_first, tokens_first):
        single_x = x[1]
        single_y = y[1] if crossed else single_x
        output, weights = either(single_x, single_y, single_y, mask[1])
        torch.testing.assert_close(output, expected[1])
        torch.testing.assert_close(weights, expected_weights[1])


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@pytest.mark.parametrize("case", ["self", "cross", "sizes"])
def test_weights_are_what_values_are_multiplied_by(normalization, case):
    sizes = {"kdim": 5, "vdim": 4} if case == "sizes" else {}
    attention = layer(normalization=normalization, **sizes)
    query = normal(2, 9, 6, seed=0)
    key = query if case == "self" else normal(2, 7, attention.kdim, seed=1)
    value = normal(2, key.shape[1], attention.vdim, seed=2)
    mask = padding_of(key.shape[1], 4, tokens=key.shape[1])
    output, weights = attention(query, key, value, mask, average_attn_weights=False)
    _, averaged = attention(query, key, value, mask)
    torch.testing.assert_close(averaged, weights.mean(1))
    assert torch.all(weights.masked_select(mask[:, None, None]) == 0)
    values = attention.v_proj(value).unflatten(-1, (2, 3)).transpose(1, 2)
    expected = attention.out_proj((weights @ values).transpose(1, 2).flatten(2))
    silent = mask if case == "self" else torch.zeros(2, 9, dtype=torch.bool)
    torch.testing.assert_close(output, expected.masked_fill(silent[..., None], 0))
    if normalization in ("token", "softmax"):
        sums = weights.sum(-1).mean(1)
        torch.testing.assert_close(sums, (~silent).to(sums.dtype))


def test_a_copy_is_cross_attention():
    attention = layer()
    x = normal(1, 9, 6, seed=0)
    myself, _ = attention(x, x, x)
    another, _ = attention(x, x.clone(), x)
    assert not torch.allclose(myself, another)


def differs_from_cross_attention(output: torch.Tensor, x: torch.Tensor, attention) -> None:
    """Checks that a test of self-attention can fail: the cross form gives another output."""
    assert not torch.allclose(output, attention(x, x.clone(), x, need_weights=False)[0])


def test_no_key_is_self_attention():
    attention = layer()
    x = normal(2, 9, 6, seed=0)
    for mask in (None, padding_of(9, 5, tokens=9)):
        expected, expected_weights = attention(x, x, x, mask)
        output, weights = attention(x, None, x, mask)
        torch.testing.assert_close(output, expected, rtol=0, atol=0)
        torch.testing.assert_close(weights, expected_weights, rtol=0, atol=0)
    differs_from_cross_attention(attention(x, None, x)[0], x, attention)
    tokens_first = layer(batch_first=False)
    swapped = x.transpose(0, 1)
    torch.testing.assert_close(
        tokens_first(swapped, None, swapped)[0].transpose(0, 1), attention(x, None, x)[0]
    )


def test_a_view_of_all_of_the_query_is_self_attention():
    attention = layer()
    x = normal(2, 9, 6, seed=0)
    expected = attention(x, x, x)[0]
    differs_from_cross_attention(expected, x, attention)
    for view in (x.detach(), x.view_as(x), x.transpose(0, 1).transpose(0, 1), x[:]):
        torch.testing.assert_close(attention(x, view, x)[0], expected, rtol=0, atol=0)
    square = normal(6, 6, 6, seed=1)
    rolled = square.transpose(0, 1)
    torch.testing.assert_close(
        attention(square, rolled, rolled)[0],
        attention(square, rolled.clone(), rolled)[0],
        rtol=0,
        atol=0,
    )


@pytest.mark.parametrize("detached", ["query", "key"])
def test_the_gradient_reaches_the_view_that_has_one(detached):
    attention = layer()
    x = normal(2, 9, 6, seed=0).requires_grad_()
    fixed = torch.zeros(2, 9, 6, dtype=torch.float64)
    (expected,) = torch.autograd.grad(attention(x, x, fixed)[0].sin().sum(), x)
    views = {"query": x, "key": x} | {detached: x.detach()}
    (gradient,) = torch.autograd.grad(attention(**views, value=fixed)[0].sin().sum(), x)
    torch.testing.assert_close(gradient, expected, rtol=0, atol=0)


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpointed_gradients_are_those_of_the_forward(use_reentrant):
    attention = layer()
    x = normal(2, 9, 6, seed=0).requires_grad_()

    def run(call):
        attention.zero_grad()
        output, _ = call(x, x, x)
        (gradient,) = torch.autograd.grad(output.sin().sum(), x)
        return output, gradient

    expected = run(attention)
    attention.zero_grad()
    x.grad = None
    output, _ = checkpoint(attention, x, x, x, use_reentrant=use_reentrant)
    output.sin().sum().backward()
    torch.testing.assert_close(output, expected[0], rtol=0, atol=0)
    torch.testing.assert_close(x.grad, expected[1])


@pytest.mark.parametrize("nested", [False, True])
def test_vmap_keeps_self_attention(nested):
    attention = layer()
    call = functools.partial(attention, need_weights=False)
    x = normal(2, 3, 9, 6, seed=0)
    mapped = torch.vmap(lambda q, k, v: call(q, k, v)[0])
    if nested:
        mapped = torch.vmap(mapped)
        x = x[:, :, None]
    expected = torch.stack([call(each, each, each)[0] for each in x.flatten(0, -4)])
    torch.testing.assert_close(mapped(x, x, x).flatten(0, -4), expected)
    differs_from_cross_attention(expected[0], x.flatten(0, -4)[0], attention)


def test_vmap_over_another_dimension_is_cross_attention():
    attention = layer()
    x = normal(3, 3, 9, 6, seed=0)

    def call(query, key):
        return attention(query, key, key, need_weights=False)[0]

    output = torch.vmap(call, in_dims=(0, 1))(x, x)
    expected = [call(x[i], x[:, i].clone()) for i in range(3)]
    torch.testing.assert_close(output, torch.stack(expected))


def test_a_derivative_with_respect_to_the_key_alone_is_that_of_cross_attention():
    attention = layer()
    x = normal(2, 9, 6, seed=0)

    def call(key):
        return attention(x, key, x, need_weights=False)[0].sin().sum()

    other = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(call(other), other)
    torch.testing.assert_close(torch.func.grad(call)(x), expected)


@pytest.mark.parametrize("positional", [False, True])
def test_hooks_that_copy_each_argument_keep_self_attention(positional):
    attention = layer(dtype=torch.float32)

    def cast(_, arguments, options):
        return tree_map_only(torch.Tensor, torch.Tensor.float, (arguments, options))

    x = normal(2, 9, 6, seed=0)
    single = x.float()
    expected = attention(single, single, single)[0]
    attention.register_forward_pre_hook(cast, prepend=True, with_kwargs=True)
    output = attention(x, x, x)[0] if positional else attention(query=x, key=x, value=x)[0]
    torch.testing.assert_close(output, expected, rtol=0, atol=0)
    differs_from_cross_attention(output, single, attention)


@pytest.fixture
def one_process():
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield distributed.init_device_mesh("cpu", (1,))
    distributed.destroy_process_group()


# The fully_shard of torch 2.6 asks for streams, which CPUs do not have.
@pytest.mark.needs_newer_torch
# nn.Linear returns a view for inputs of three dimensions.
@pytest.mark.filterwarnings("ignore:FSDP2-wrapped module:UserWarning")
def test_mixed_precision_of_fsdp_keeps_self_attention(one_process):
    attention = layer(dtype=torch.float32)
    x = torch.randn(2, 9, 6)
    half = x.bfloat16()
    in_half = copy.deepcopy(attention).bfloat16()
    expected = in_half(half, half, half, need_weights=False)[0]
    fully_shard(
        attention,
        mesh=one_process,
        mp_policy=MixedPrecisionPolicy(param_dtype=torch.bfloat16),
    )
    output = attention(x, x, x, need_weights=False)[0]
    torch.testing.assert_close(output, expected, rtol=0, atol=0)
    differs_from_cross_attention(output, half, in_half)


# On torch 2.6 graphs break at softattn's functions.
@pytest.mark.needs_newer_torch
def test_compiled_and_exported_as_in_eager():
    attention = layer(dtype=torch.float32)
    x = torch.randn(2, 9, 6)
    mask = padding_of(9, 5, tokens=9)
    arguments = (x, x, x, mask, False)
    expected, _ = attention(*arguments)
    compiled = torch.compile(attention, backend="eager", fullgraph=True)
    exported = torch.export.export(attention, arguments).module()
    for call in (compiled, exported):
        torch.testing.assert_close(call(*arguments)[0], expected)
    torch.testing.assert_close(compiled(x, None, x, mask, False)[0], expected)


def test_projections_are_shared_where_keys_have_the_features_of_queries():
    assert {name.split(".")[0] for name in layer(vdim=3).state_dict()} == {
        "qk_proj",
        "v_proj",
        "out_proj",
    }
    separate = layer(kdim=5, bias=False).state_dict()
    assert {name: tuple(weight.shape) for name, weight in separate.items()} == {
        "q_proj.weight": (6, 6),
        "k_proj.weight": (6, 5),
        "v_proj.weight": (6, 6),
        "out_proj.weight": (6, 6),
    }


@pytest.mark.parametrize("crossed", [False, True])
@pytest.mark.parametrize("sampler", ["average", "convolution"])
def test_padding_is_ignored(crossed, sampler):
    landmarks = AvgPoolLandmarks(4) if sampler == "average" else ConvLandmarks(3, (2,)).double()
    attention = layer(landmarks=landmarks)
    mask = torch.tensor([[True, False, False, True, False, False, True], [True] * 7])
    x, y = normal(2, 5, 6, seed=0), normal(2, 7, 6, seed=1)

    def run(filling):
        attention.zero_grad()
        key = y.masked_fill(mask[..., None], filling)
        query = x if crossed else key
        output, weights = attention(query, key, key, mask)
        (output.square().sum() + weights.square().sum()).backward()
        return output, weights, *(p.grad.clone() for p in attention.parameters())

    for nan, other in zip(run(float("nan")), run(1e3), strict=True):
        torch.testing.assert_close(nan, other, rtol=0, atol=0)
        assert nan.isfinite().all()
    output = run(0.0)[0]
    kept = y[:1, ~mask[0]]
    alone, _ = attention(x[:1] if crossed else kept, kept, kept)
    torch.testing.assert_close(output[:1] if crossed else output[:1, ~mask[0]], alone)
    assert torch.all(output[1] == 0)
    if not crossed:
        assert torch.all(output[0, mask[0]] == 0)


@pytest.mark.parametrize("number", [-torch.inf, torch.finfo(torch.float64).min, -1e4])
def test_additive_padding_mask(number):
    attention = layer()
    x = normal(2, 9, 6, seed=0)
    mask = padding_of(9, 5, tokens=9)
    additive = torch.zeros(2, 9, dtype=torch.float64).masked_fill(mask, number)
    outputs = attention(x, x, x, mask), attention(x, x, x, additive)
    for of_bool, of_float in zip(*outputs, strict=True):
        torch.testing.assert_close(of_float, of_bool, rtol=0, atol=0)


@pytest.mark.parametrize("number", [-1.0, 1.0])
def test_a_mask_of_finite_numbers_is_refused(number):
    x = torch.randn(2, 9, 6)
    mask = torch.zeros(2, 9).masked_fill(padding_of(9, 5, tokens=9), number)
    reason = "must be 0 at tokens.*mask < 0 is True at the padding of an additive mask"
    with pytest.raises(ValueError, match=reason):
        layer(dtype=torch.float32)(x, x, x, mask)


# On torch 2.6 graphs break at softattn's functions.
@pytest.mark.needs_newer_torch
@pytest.mark.parametrize("graph", ["compiled", "exported", "traced by export"])
def test_a_mask_of_finite_numbers_is_refused_in_a_graph(graph):
    attention = layer(dtype=torch.float32)
    x = torch.randn(2, 9, 6)
    padding = padding_of(9, 5, tokens=9)
    additive = torch.zeros(2, 9).masked_fill(padding, torch.finfo(torch.float32).min)
    if graph == "compiled":
        call = torch.compile(attention, backend="aot_eager", fullgraph=True)
    else:
        strict = graph == "traced by export"
        call = torch.export.export(attention, (x, x, x, additive, False), strict=strict).module()
    expected = attention(x, x, x, padding, need_weights=False)
    torch.testing.assert_close(call(x, x, x, additive, False), expected)
    with pytest.raises(RuntimeError, match="key_padding_mask must be 0 at tokens"):
        call(x, x, x, torch.zeros(2, 9).masked_fill(padding, -1.0), False)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"dropout": 0.1}, "dropout must be 0, got 0.1"),
        ({"add_bias_kv": True}, "add_bias_kv must be False"),
        ({"add_zero_attn": True}, "add_zero_attn must be False"),
        ({"num_heads": 4}, "num_heads must divide embed_dim, got 6 and 4"),
        ({"normalization": "rows"}, "normalization must be one of"),
        ({"impl": "cuda"}, "impl must be one of"),
        ({"pinv": "exact"}, "pinv must be one of"),
    ],
)
def test_constructor_refuses(options, reason):
    with pytest.raises(ValueError, match=reason):
        SoftmaxFreeMultiheadAttention(**{"embed_dim": 6, "num_heads": 2} | options)


@pytest.mark.parametrize(
    ("shapes", "options", "error", "reason"),
    [
        ([(2, 9, 6)] * 3, {"attn_mask": torch.zeros(9, 9)}, ValueError, "masks pairs of tokens"),
        ([(2, 9, 6)] * 3, {"is_causal": True}, ValueError, "causal attention is not offered"),
        ([(2, 9, 6), (2, 9, 5), (2, 9, 6)], {}, ValueError, "key must have 6 features"),
        ([(2, 9, 6), (9, 6), (9, 6)], {}, ValueError, "or none of them"),
        ([(2, 9, 6), (3, 9, 6), (3, 9, 6)], {}, ValueError, "agree in the batch, dimension 0"),
        ([(2, 9, 6), (2, 9, 6), (2, 8, 6)], {}, ValueError, "agree in all but their features"),
        (
            [(2, 9, 6)] * 3,
            {"key_padding_mask": torch.zeros(2, 8, dtype=torch.bool)},
            ValueError,
            r"\(batch, tokens\) = \(2, 9\)",
        ),
        (
            [(2, 9, 6)] * 3,
            {"key_padding_mask": torch.zeros(2, 9, dtype=torch.int64)},
            TypeError,
            "must be a bool tensor.* mask == 0 at the padding of a mask that is 1 at tokens",
        ),
    ],
)
def test_forward_refuses(shapes, options, error, reason):
    inputs = [torch.zeros(shape, dtype=torch.float64) for shape in shapes]
    with pytest.raises(error, match=reason):
        layer()(*inputs, **options)


def test_no_key_where_keys_have_other_features_is_refused():
    x = torch.zeros(2, 9, 6, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"key=None.*needs kdim=6.*kdim is 5"):
        layer(kdim=5)(x, None, x)


def test_nested_tensors_are_refused():
    x = torch.nested.nested_tensor([torch.zeros(3, 6), torch.zeros(4, 6)], layout=torch.jagged)
    with pytest.raises(TypeError, match="pad it and give key_padding_mask"):
        layer()(x, x, x)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(dtype):
    attention = layer(dtype=torch.float32)
    x = torch.randn(2, 9, 6)
    exact = attention(x, x, x)
    with torch.autocast("cpu", dtype=dtype):
        rounded = attention(x, x, x)
    for half, full in zip(rounded, exact, strict=True):
        assert half.dtype == dtype
        assert (half.float() - full).abs().max() / full.abs().max() < 40 * torch.finfo(dtype).eps


@pytest.mark.parametrize("made", ["before the encoder", "after the encoder"])
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("norm_first", [False, True])
# An encoder of layers that normalise first says that it takes no nested tensors.
@pytest.mark.filterwarnings("ignore:enable_nested_tensor is True.*norm_first:UserWarning")
def test_encoder_output_is_the_same_in_train_and_eval(made, padded, norm_first):
    own = SoftmaxFreeMultiheadAttention(
        8, 2, batch_first=True, landmarks=AvgPoolLandmarks(4), dtype=torch.float64
    )
    if made == "before the encoder":
        block = nn.TransformerEncoderLayer(
            8, 2, 16, dropout=0.0, batch_first=True, norm_first=norm_first, dtype=torch.float64
        )
        block.self_attn = own
        model = nn.TransformerEncoder(block, 2)
    else:
        model = encoder(norm_first=norm_first)
        for block in model.layers:
            block.self_attn = copy.deepcopy(own)
    x = normal(2, 9, 8, seed=0)
    mask = padding_of(9, 5, tokens=9) if padded else None
    trained = model.train()(x, src_key_padding_mask=mask)
    trained.square().sum().backward()
    assert all(p.grad.isfinite().all() and p.grad.any() for p in model.parameters())
    model.eval()
    evaluated = [model(x, src_key_padding_mask=mask)]
    with torch.no_grad():
        evaluated.append(model(x, src_key_padding_mask=mask))
        by_layers = x
        for block in model.layers:
            by_layers = block(by_layers, src_key_padding_mask=mask)
        evaluated.append(by_layers)
    for output in evaluated:
        torch.testing.assert_close(output, trained, rtol=0, atol=0)
    if padded:
        alone = model(x[1:, :5])
        torch.testing.assert_close(trained[1:, :5], alone)


def test_decoder_attends_to_its_memory():
    block = nn.TransformerDecoderLayer(8, 2, 16, dropout=0.0, batch_first=True).double()
    report = swap_attention(block, names=["multihead_attn"], landmarks=AvgPoolLandmarks(4))
    assert report.swapped == {"multihead_attn": ""}
    assert report.left_alone == {"self_attn": "it is not among the names"}
    x, memory = normal(2, 5, 8, seed=0), normal(2, 9, 8, seed=1)
    causal = nn.Transformer.generate_square_subsequent_mask(5, dtype=torch.float64)
    output = block(x, memory, tgt_mask=causal, tgt_is_causal=True)
    later = x.clone()
    later[:, -1] = 1
    torch.testing.assert_close(block(later, memory, tgt_mask=causal)[:, :-1], output[:, :-1])
    assert not torch.allclose(block(x, memory.flip(-1), tgt_mask=causal), output)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("sizes", [{}, {"vdim": 5}, {"kdim": 4, "vdim": 5}])
def test_projections_are_carried_over(bias, sizes):
    softmax = nn.MultiheadAttention(6, 2, bias=bias, **sizes)
    if bias:
        nn.init.normal_(softmax.in_proj_bias)
    own = SoftmaxFreeMultiheadAttention.from_multihead_attention(softmax.eval())
    assert not own.training
    assert not own.batch_first
    if sizes:
        w_q, w_k, w_v = softmax.q_proj_weight, softmax.k_proj_weight, softmax.v_proj_weight
    else:
        w_q, w_k, w_v = softmax.in_proj_weight.chunk(3)
    expected = {"v_proj.weight": w_v, "out_proj.weight": softmax.out_proj.weight}
    if "kdim" in sizes:
        expected |= {"q_proj.weight": w_q, "k_proj.weight": w_k}
    else:
        expected["qk_proj.weight"] = (w_q + w_k) / 2
    if bias:
        b_q, b_k, b_v = softmax.in_proj_bias.chunk(3)
        expected |= {"v_proj.bias": b_v, "out_proj.bias": softmax.out_proj.bias}
        if "kdim" in sizes:
            expected |= {"q_proj.bias": b_q, "k_proj.bias": b_k}
        else:
            expected["qk_proj.bias"] = (b_q + b_k) / 2
    state = own.state_dict()
    assert set(state) == set(expected)
    for name, parameter in expected.items():
        torch.testing.assert_close(state[name], parameter.detach())
    with torch.no_grad():
        own.v_proj.weight.zero_()
    assert w_v.any()


def test_is_softmax_attention_where_queries_are_keys_of_one_norm():
    softmax = nn.MultiheadAttention(6, 2, batch_first=True, dtype=torch.float64)
    with torch.no_grad():
        softmax.in_proj_weight[:12] = torch.eye(6).repeat(2, 1)
    own = SoftmaxFreeMultiheadAttention.from_multihead_attention(
        softmax, landmarks=AvgPoolLandmarks(9), pinv=torch.linalg.inv
    )
    x = nn.functional.normalize(normal(2, 9, 2, 3, seed=0), dim=-1).flatten(2)
    value = normal(2, 9, 6, seed=1)
    mask = padding_of(9, 7, tokens=9)
    expected, expected_weights = softmax(x, x, value, mask)
    output, weights = own(x, x, value, mask)
    torch.testing.assert_close(output[~mask], expected[~mask])
    torch.testing.assert_close(weights[~mask], expected_weights[~mask])


def test_swap_reports():
    model = nn.ModuleDict(
        {
            "encoder": encoder(dropout=0.1),
            "decoder": nn.TransformerDecoderLayer(8, 2, 16),
            "extra": nn.MultiheadAttention(8, 2, add_bias_kv=True),
        }
    )
    report = swap_attention(model, landmarks=AvgPoolLandmarks(4))
    assert dict(report.swapped) == {
        f"encoder.layers.{i}.self_attn": "without its dropout 0.1" for i in range(2)
    }
    assert list(report.left_alone) == ["decoder.self_attn", "decoder.multihead_attn", "extra"]
    assert str(report).startswith("swapped 2, left alone 3\n  queries and keys share")
    assert "  extra: left alone, add_bias_kv is True" in str(report)
    for name in report.swapped:
        assert isinstance(model.get_submodule(name), SoftmaxFreeMultiheadAttention)
    for name in report.left_alone:
        assert isinstance(model.get_submodule(name), nn.MultiheadAttention)


def test_swap_keeps_what_is_shared_and_what_is_frozen():
    attention = nn.MultiheadAttention(8, 2).requires_grad_(False)
    model = nn.ModuleList([attention, attention])
    swap_attention(model, landmarks=ConvLandmarks(4, (2,)))
    assert model[0] is model[1]
    trained = [name for name, p in model[0].named_parameters() if p.requires_grad]
    assert trained == ["landmarks.conv.weight", "landmarks.norm.weight", "landmarks.norm.bias"]


def test_swapped_layers_have_landmarks_of_their_own():
    model = encoder()
    swap_attention(model, landmarks=ConvLandmarks(4, (2,)).double())
    first, second = (block.self_attn.landmarks for block in model.layers)
    assert first.conv.weight is not second.conv.weight
    assert torch.equal(first.conv.weight, second.conv.weight)


@pytest.mark.parametrize(
    ("model", "options", "reason"),
    [
        (nn.MultiheadAttention(8, 2), {}, "model is itself the attention"),
        (nn.Linear(8, 8), {}, "no nn.MultiheadAttention to swap"),
        (nn.Sequential(nn.MultiheadAttention(8, 2)), {"names": ["1"]}, r"\(0\), got 1"),
    ],
)
def test_swap_refuses(model, options, reason):
    with pytest.raises(ValueError, match=reason):
        swap_attention(model, **options)


def test_a_refused_swap_changes_nothing():
    model = encoder()
    with pytest.raises(ValueError, match="normalization must be one of"):
        swap_attention(model, normalization="rows")
    assert all(type(block.self_attn) is nn.MultiheadAttention for block in model.layers)
