"""Near fields through the Triton kernels: interpreted, or on a GPU with ``--device cuda``.

The interpreter needs a second for a tile, so problems are few and small.
"""

import pytest
import torch
from support.budget import EXACT, assert_within_budget
from support.strategies import normal

from softattn import (
    KMeansLandmarks,
    SoftmaxFreeAttention,
    reference,
    softmax_free_attention,
)
from softattn.backends.backend import EAGER, TRITON
from softattn.backends.content_order import content_order
from softattn.common.quotient import FLOOR
from softattn.eager.near_field import NearField

pytestmark = pytest.mark.usefixtures("poisoned_memory")

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
N, M, D, D_V, SCALE = 21, 7, 5, 3, 0.4


def tensors(dtype, *, spread=1.0, asymmetric=0.0):
    """X, V, L and M of one problem that takes two tiles, in the numbers of ``dtype``."""
    tokens, value, landmarks = (
        normal(1, 2, n, d, seed=seed, spread=spread if d == D else 1.0).to(dtype)
        for seed, (n, d) in enumerate(((N, D), (N, D_V), (M, D)))
    )
    gram = reference.gaussian_kernel(landmarks.double(), landmarks.double(), SCALE)
    middle = torch.linalg.inv(gram + 0.01 * torch.eye(M))
    middle = middle @ (torch.eye(M) + asymmetric * normal(M, M, seed=5))
    return tokens, value, landmarks, middle.float()


def heads_last(t):
    """The tensor as a layer stores it, whose heads are columns of its tokens."""
    return t.transpose(1, 2).contiguous().transpose(1, 2)


def random_order(padding=None):
    """An order of the tokens of each head, padding last."""
    keys = torch.rand(1, 2, N, generator=torch.Generator().manual_seed(7))
    return (keys if padding is None else keys + padding.cpu()[:, None]).argsort()


def output_and_gradients(backend, inputs, dtype, near_field, padding=None):
    """O, dX, dV, dL and dM of a random projection of O."""
    *rows, middle = inputs
    device = middle.device
    rows = [t.to(dtype).detach().requires_grad_() for t in rows]
    wide = torch.promote_types(dtype, torch.float32)
    middle = middle.to(wide).detach().requires_grad_()
    output = backend.landmark_attention(
        rows[0],
        None,
        *rows[1:],
        middle,
        quotient=True,
        near_field=near_field,
        order=random_order(padding).to(device),
        key_weights=None,
        scale=SCALE,
        key_padding_mask=padding,
        group=None,
    )
    weights = normal(*output.shape, seed=6).to(device, dtype)
    return output, *torch.autograd.grad((output * weights).sum(), (*rows, middle))


@pytest.mark.parametrize(("near_field", "padded"), [(4, True), (18, False)])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_output_and_gradients_are_within_budget(device, dtype, near_field, padded):
    inputs = tensors(dtype, asymmetric=0.1)
    padding = torch.arange(N)[None] % 7 == 2 if padded else None
    truth = output_and_gradients(EAGER, inputs, torch.float64, near_field, padding)
    plain = output_and_gradients(EAGER, inputs, torch.float32, near_field, padding)
    inputs = [t.to(device) for t in inputs]
    on_device = None if padding is None else padding.to(device)
    actual = output_and_gradients(TRITON, inputs, dtype, near_field, on_device)
    # What cancels: P |M| Pᵀ, and its terms in the gradients.
    magnitude = inputs[3].abs().sum((-2, -1)).amax()
    for a, t, p in zip(actual, truth, plain, strict=True):
        # dM is float32, and computed from an output in half precision.
        assert_within_budget(
            a.cpu().to(dtype), t, baseline=p.to(dtype), magnitude=magnitude * (1 + t.abs().amax())
        )


def test_wrong_inverse_meets_the_bounds_and_the_floor_as_in_eager(device):
    tokens, value, landmarks, middle = tensors(torch.float32, asymmetric=4.0)
    ordered = tokens.take_along_dim(random_order().unsqueeze(-1), 2)
    p = reference.gaussian_kernel(ordered, landmarks, SCALE)
    near = NearField(ordered, p, p @ middle, torch.ones(1, 2, N, 1), 8, SCALE)
    for bound in (-1, 0, 1):
        assert (near.remainder == bound).any()
    z = middle @ p.sum(2).unsqueeze(-1)
    denominator, terms = (p @ torch.cat([z, z.abs()], -1) + near.sums()).unbind(-1)
    assert (denominator.abs() < FLOOR * terms).any()
    inputs = (tokens, value, landmarks, middle)
    expected = output_and_gradients(EAGER, inputs, torch.float64, 8)
    actual = output_and_gradients(TRITON, [t.to(device) for t in inputs], torch.float32, 8)
    for a, t in zip(actual, expected, strict=True):
        assert (a.cpu() - t).norm() <= 1e-3 * t.norm()


def test_one_run_of_all_tokens_is_the_exact_operator(device):
    tokens, value, landmarks, _ = (t.to(device) for t in tensors(torch.float32))
    exact = reference.gaussian_attention(tokens, tokens, value, normalize=True)
    output = softmax_free_attention(tokens, None, value, landmarks, near_field=N, impl="triton")
    torch.testing.assert_close(output, exact, rtol=1e-4, atol=1e-5)


def test_padding_and_strides_do_not_change_a_bit(device):
    inputs = [t.to(device) for t in tensors(torch.bfloat16, asymmetric=0.1)]
    padding = (torch.arange(N) % 5 > 2)[None].to(device)
    hidden = padding[:, None, :, None]
    expected = output_and_gradients(TRITON, inputs, torch.bfloat16, 4, padding)
    for filling, scatter in ((float("nan"), lambda t: t.mT.contiguous().mT), (7.0, heads_last)):
        filled = [t.masked_fill(hidden, filling) for t in inputs[:2]] + inputs[2:]
        again = output_and_gradients(
            TRITON, [scatter(t) for t in filled], torch.bfloat16, 4, padding
        )
        for a, b in zip(again, expected, strict=True):
            torch.testing.assert_close(a, b, **EXACT)
    for of_tokens in expected[:3]:
        assert (of_tokens.masked_select(hidden) == 0).all()


def test_outputs_and_gradients_are_stored_as_their_tokens(device):
    *rows, middle = (t.to(device) for t in tensors(torch.bfloat16))
    inputs = (*map(heads_last, rows), middle)
    output, *gradients = output_and_gradients(TRITON, inputs, torch.bfloat16, 4)
    for stored in (output, *gradients[:2]):
        assert stored.transpose(1, 2).is_contiguous()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_order_of_tokens_is_that_of_eager(device, dtype):
    tokens, _, landmarks, _ = tensors(dtype)
    padding = torch.arange(N)[None] % 7 == 2
    expected = content_order(EAGER, tokens, landmarks, padding)
    tokens = tokens.masked_fill(padding[:, None, :, None], torch.nan)
    order = content_order(TRITON, *(t.to(device) for t in (tokens, landmarks, padding)))
    assert torch.equal(order.cpu(), expected)


def test_layer_and_packed_sequences_as_in_eager(device):
    x = normal(1, N, 8, seed=0).to(device, torch.float32).requires_grad_()
    layer = SoftmaxFreeAttention(8, 1, landmarks=KMeansLandmarks(5), near_field=4, device=device)
    results = []
    for impl in ("triton", "eager"):
        layer.impl = impl
        output = layer(x)
        packed = layer(x[0], cu_seqlens=torch.tensor([0, 3, N], device=device))
        gradients = torch.autograd.grad(output.square().sum(), (x, *layer.parameters()))
        results.append((output, packed, *gradients))
    for actual, expected in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-3, atol=1e-4)
