"""The Triton kernels as PyTorch operators: schemas, shapes, compilation, choice, precision."""

import itertools
import re

import pytest
import torch
from support.strategies import NORMALIZATIONS, normal
from torch.utils.checkpoint import checkpoint

import softattn
from softattn import SoftmaxFreeAttention, explain_impl, softmax_free_attention
from softattn import triton as operators

pytestmark = [
    pytest.mark.usefixtures("poisoned_memory"),
    # What opcheck and Inductor do themselves.
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Skipping serialization of skipfiles"),
]


def tensors(device, *shapes, dtype=torch.float32):
    return [
        normal(*shape, seed=seed).to(device, dtype).requires_grad_()
        for seed, shape in enumerate(shapes)
    ]


def assert_close(actual, expected):
    """Equal up to rounding in float32, relative to the largest entry."""
    assert actual.shape == expected.shape and actual.dtype == expected.dtype
    assert (actual - expected).abs().amax() <= 1e-4 * expected.abs().amax()


@pytest.mark.parametrize(("quotient", "weighted"), [(False, False), (True, False), (True, True)])
@pytest.mark.parametrize("crossed", [False, True])
@pytest.mark.parametrize("padded", [False, True])
def test_opcheck_of_landmark_attention(device, quotient, weighted, crossed, padded):
    query, key, value, landmarks, middle, weights = tensors(
        device, (2, 1, 5, 3), (2, 1, 5, 3), (2, 1, 5, 4), (2, 1, 2, 3), (2, 1, 2, 2), (2, 1, 5)
    )
    weights = weights.detach().sigmoid().requires_grad_() if weighted else None
    padding = torch.zeros(2, 5, dtype=torch.int32, device=device) if padded else None
    torch.library.opcheck(
        operators.landmark_attention,
        (
            query,
            key if crossed else None,
            value,
            landmarks,
            middle,
            weights,
            padding,
            0.5,
            quotient,
        ),
    )


@pytest.mark.parametrize("padded", [False, True])
def test_opcheck_of_near_field_attention(device, padded):
    inputs = tensors(device, (2, 1, 5, 3), (2, 1, 5, 4), (2, 1, 2, 3), (2, 1, 2, 2))
    padding = torch.zeros(2, 5, dtype=torch.int32, device=device) if padded else None
    order = torch.rand(2, 1, 5, device=device).argsort()
    torch.library.opcheck(operators.near_field_attention, (*inputs, order, padding, 0.5, 2))


@pytest.mark.parametrize(
    ("normalize", "crossed"), list(itertools.product([False, True], [False, True]))
)
def test_opcheck_of_gaussian_attention(device, normalize, crossed):
    query, key, value = tensors(device, (2, 1, 5, 3), (2, 1, 5, 3), (2, 1, 5, 4))
    torch.library.opcheck(
        operators.gaussian_attention,
        (query, key if crossed else None, value, None, 0.5, normalize),
    )


def test_opcheck_of_gaussian_kernel(device):
    query, key = tensors(device, (2, 1, 5, 3), (2, 1, 4, 3))
    torch.library.opcheck(operators.gaussian_kernel, (query, key, 0.5))
    torch.library.opcheck(operators.gaussian_kernel, (query, query, 0.5))


@pytest.mark.parametrize("padded", [False, True])
def test_opcheck_of_key_weights(device, padded):
    (keys,) = tensors(device, (2, 1, 5, 3))
    keys = keys.detach()  # it has no derivative of its own
    padding = torch.zeros(2, 5, dtype=torch.int32, device=device) if padded else None
    torch.library.opcheck(operators.key_weights, (keys, padding, 0.5))
    weights, *_ = computed = operators.key_weights(keys, padding, 0.5)
    for grad_keys in (None, keys):
        arguments = (weights, keys, padding, *computed, grad_keys, 0.5)
        torch.library.opcheck(torch.ops.softattn.key_weights_gradient.default, arguments)


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("normalized", [False, True])
def test_opcheck_of_middle_factor(device, padded, normalized):
    (landmarks,) = tensors(device, (2, 1, 3, 4))
    padding = torch.tensor([[0, 0, 1], [0, 0, 0]], dtype=torch.int32) if padded else None
    padding = padding if padding is None else padding.to(device)
    arguments = (landmarks, padding, 0.5, 0.01, normalized)
    torch.library.opcheck(operators.middle_factor, arguments)


def test_opcheck_of_newton(device):
    target, start = tensors(device, (3, 4, 4), (3, 4, 4))
    torch.library.opcheck(operators.newton, (target, start, 0.3, 3))


# On torch 2.6 graphs break at softattn's functions.
@pytest.mark.needs_newer_torch
@pytest.mark.parametrize(
    "choices",
    [*({"normalization": n} for n in NORMALIZATIONS), {"near_field": 4}],
    ids=[*NORMALIZATIONS, "near field"],
)
@pytest.mark.parametrize("padded", [False, True])
def test_layer_compiles_whole(device, choices, padded):
    torch.compiler.reset()  # Dynamo takes no more than a few variants of one function
    layer = SoftmaxFreeAttention(16, 2, **choices, impl="triton", device=device)
    (x,) = tensors(device, (2, 4, 5, 16))
    options = {}
    if padded:
        padding = torch.zeros(2, 4, 5, dtype=torch.bool, device=device)
        padding[0, 2:] = True
        options["key_padding_mask"] = padding
    results = []
    for module in (layer, torch.compile(layer, fullgraph=True)):
        output = module(x, **options)
        gradients = torch.autograd.grad(output.square().sum(), (x, *layer.parameters()))
        results.append((output, torch.cat([g.flatten() for g in gradients])))
    for eager, compiled in zip(*results, strict=True):
        assert_close(compiled, eager)


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_layer_gives_what_eager_gives(device, normalization):
    layer = SoftmaxFreeAttention(16, 2, normalization=normalization, device=device)
    (x,) = tensors(device, (2, 4, 5, 16))
    results = []
    for impl in ("triton", "eager"):
        layer.impl = impl
        output = layer(x)
        gradients = torch.autograd.grad(output.square().sum(), (x, *layer.parameters()))
        results.append((output, torch.cat([g.flatten() for g in gradients])))
    for triton, eager in zip(*results, strict=True):
        assert_close(triton, eager)


@pytest.mark.parametrize("crossed", [False, True])
@pytest.mark.parametrize(
    "operator", ["landmark_attention", "gaussian_attention", "gaussian_kernel", "newton_pinv"]
)
def test_second_derivative_says_where_to_go(device, operator, crossed):
    query, key, value, landmarks = tensors(
        device, (1, 1, 5, 3), (1, 1, 5, 3), (1, 1, 5, 4), (1, 1, 2, 3)
    )
    key = key if crossed else None
    call = {
        "landmark_attention": lambda impl: softmax_free_attention(
            query, key, value, landmarks, impl=impl
        ),
        "gaussian_attention": lambda impl: softattn.gaussian_attention(
            query, key, value, impl=impl
        ),
        "gaussian_kernel": lambda impl: softattn.gaussian_kernel(
            query, key if crossed else query, impl=impl
        ),
        "newton_pinv": lambda impl: softattn.newton_pinv(
            query.mT @ query, method="soft", impl=impl
        ),
    }[operator]

    def gradient(impl):
        loss = call(impl).square().sum()
        return torch.autograd.grad(loss, query, create_graph=True)[0]

    assert_close(gradient("triton"), gradient("eager"))
    with pytest.raises(NotImplementedError, match="use impl='eager'"):
        gradient("triton").sum().backward()
    gradient("eager").sum().backward()
    assert query.grad.isfinite().all()


def test_autocast_promotes_mixed_dtypes_and_leaves_others(device):
    query, value, landmarks = tensors(device, (1, 1, 9, 3), (1, 1, 9, 4), (1, 1, 3, 3))
    half = torch.bfloat16
    with torch.autocast(device.type, dtype=half):
        mixed = softmax_free_attention(
            query.to(half), None, value.to(half), landmarks, impl="triton"
        )
        narrow = softmax_free_attention(
            query.to(half), None, value.to(half), landmarks.to(half), impl="triton"
        )
    assert mixed.dtype == torch.float32
    assert narrow.dtype == half
    wide = softmax_free_attention(
        query.to(half).float(), None, value.to(half).float(), landmarks, impl="triton"
    )
    torch.testing.assert_close(mixed, wide)
    with pytest.raises(TypeError, match="one dtype"):
        softmax_free_attention(query.to(half), None, value.to(half), landmarks, impl="triton")


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_layer_under_autocast_is_close_to_float32(device, normalization):
    layer = SoftmaxFreeAttention(16, 2, normalization=normalization, impl="triton", device=device)
    (x,) = tensors(device, (2, 4, 5, 16))
    with torch.autocast(device.type, dtype=torch.bfloat16):
        output = layer(x)
    assert output.dtype == torch.bfloat16
    expected = layer(x)
    assert (output - expected).abs().max() <= 0.05 * expected.abs().max()
    output.sum().backward()
    assert x.grad.isfinite().all()


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_hard_inputs_stay_finite(device, scale, dtype, normalization):
    tokens = (scale * normal(1, 1, 20, 4, seed=0)).to(device, dtype)
    alike = torch.full_like(tokens, scale)
    one_hot = torch.eye(4, device=device, dtype=dtype).repeat(5, 1)[None, None]
    value = normal(1, 1, 20, 3, seed=1).to(device, dtype)
    for x in (tokens, alike, one_hot):
        x = x.clone().requires_grad_()
        landmarks = x[:, :, :5]
        output = softmax_free_attention(
            x, None, value, landmarks, normalization=normalization, impl="triton"
        )
        output.sum().backward()
        assert output.isfinite().all()
        assert x.grad.isfinite().all()


class TestExplainImpl:
    def test_auto_takes_triton_on_a_gpu_alone(self, device):
        (x,) = tensors(device, (1, 1, 5, 3))
        choice = explain_impl(x)
        if device.type == "cuda":
            assert choice.name == "triton"
        else:
            assert choice.name == "eager"
            assert "the tensors are on cpu" in choice.reason

    @pytest.mark.parametrize(
        ("shapes", "dtype", "reason"),
        [
            (((1, 1, 5, 257), None, None), torch.float32, "257 features, the kernels take 256"),
            (((1, 1, 5, 3), (1, 1, 5, 300), None), torch.float32, "300 features"),
            (((1, 1, 5, 3), None, (1, 1, 1025, 3)), torch.float32, "1025 landmarks"),
            (((1, 1, 5, 3), None, None), torch.float64, r"too little for torch\.float64"),
        ],
    )
    def test_obstacles_are_named(self, device, shapes, dtype, reason):
        query, value, landmarks = (
            None if shape is None else torch.zeros(shape, device=device, dtype=dtype)
            for shape in shapes
        )
        choice = explain_impl(query, value, landmarks, impl="triton")
        assert choice.name == "eager"
        assert re.search(reason, choice.reason)
        value = query if value is None else value
        with pytest.raises(ValueError, match=f"impl='triton' was asked for, but .*{reason}"):
            if landmarks is None:
                softattn.gaussian_attention(query, None, value, impl="triton")
            else:
                softmax_free_attention(query, None, value, landmarks, impl="triton")

    def test_eager_on_request(self, device):
        (x,) = tensors(device, (1, 1, 5, 3))
        assert explain_impl(x, impl="eager").name == "eager"
        with pytest.raises(ValueError, match="impl must be one of"):
            explain_impl(x, impl="cuda")


@pytest.mark.parametrize("near_field", [1, 4])
@pytest.mark.parametrize("use_reentrant", [False, True])
def test_activation_checkpointing(device, near_field, use_reentrant):
    layer = SoftmaxFreeAttention(16, 2, near_field=near_field, impl="triton", device=device)
    (x,) = tensors(device, (2, 4, 5, 16))
    (expected,) = torch.autograd.grad(layer(x).square().sum(), x)
    for _ in range(3):
        x.grad = None
        checkpoint(layer, x, use_reentrant=use_reentrant).square().sum().backward()
        assert torch.equal(x.grad, expected)


def test_output_stored_as_a_layers_tokens_can_be_changed_in_place(device):
    heads_last = normal(1, 5, 2, 4, seed=0).to(device, torch.float32).transpose(1, 2)
    with torch.no_grad():
        output = softmax_free_attention(
            heads_last, None, heads_last, heads_last[:, :, :2], impl="triton"
        )
    expected = 2 * output
    factor = torch.full((), 2.0, device=device, requires_grad=True)
    assert torch.equal(output.mul_(factor), expected)


def test_torch_func_is_refused_in_words(device):
    (tokens,) = tensors(device, (1, 1, 6, 3))

    def loss(tokens):
        return softmax_free_attention(tokens, None, tokens, tokens[:, :, :2], impl="triton").sum()

    with pytest.raises(NotImplementedError, match="impl='eager'"):
        torch.func.grad(loss)(tokens.detach())
