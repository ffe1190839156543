"""Landmarks by k-means."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.memory import LargestTensor
from support.packed import offsets
from support.strategies import normal, padding_masks, seeds
from torch.autograd import gradcheck, gradgradcheck

import softattn
from softattn import KMeansLandmarks, SoftmaxFreeAttention
from softattn.eager import clusters
from softattn.eager import tiles as streaming

pytestmark = pytest.mark.usefixtures("tiles")

ROUNDING = dict(rtol=1e-10, atol=1e-10)


def lloyd(tokens, starts, steps):
    """K-means of the tokens (n, d) of one head from ``starts`` (m, d), as it is defined."""
    for _ in range(steps if len(starts) else 0):
        nearest = torch.cdist(tokens, starts).argmin(1)
        members = [tokens[nearest == j] for j in range(len(starts))]
        means = [
            start if len(own) == 0 else own.mean(0)
            for own, start in zip(members, starts, strict=True)
        ]
        starts = torch.stack(means)
    return starts


@st.composite
def problems(draw):
    """A sampler, tokens on a grid, and a padding mask or None."""
    grid = draw(st.lists(st.integers(1, 6), min_size=1, max_size=3))
    n = torch.Size(grid).numel()
    tokens = normal(2, 2, n, 3, seed=draw(seeds))
    sampler = KMeansLandmarks(draw(st.integers(1, 8)), draw(st.integers(0, 3)))
    return sampler, tokens, grid, draw(st.none() | padding_masks(2, n))


@given(problems())
def test_moves_each_landmark_to_the_mean_of_its_tokens(problem):
    sampler, tokens, grid, mask = problem
    landmarks = sampler(tokens, grid, mask)
    starts = sampler.cells(tokens, grid, mask)
    padding = sampler.landmark_padding_mask(grid, mask)
    for sample in range(2):
        kept = slice(None) if mask is None else ~mask[sample]
        real = slice(None) if padding is None else ~padding[sample]
        for head in range(2):
            expected = lloyd(tokens[sample, head, kept], starts[sample, head, real], sampler.steps)
            torch.testing.assert_close(landmarks[sample, head, real], expected, **ROUNDING)
    if padding is not None:
        assert (landmarks.masked_select(padding[:, None, :, None]) == 0).all()


@given(problems())
def test_no_steps_are_average_pooling(problem):
    sampler, tokens, grid, mask = problem
    still = KMeansLandmarks(sampler.cells.num_landmarks, 0)
    torch.testing.assert_close(
        still(tokens, grid, mask), sampler.cells(tokens, grid, mask), rtol=0, atol=0
    )


@given(problems(), seeds)
def test_only_the_cells_depend_on_the_order_of_tokens(problem, seed):
    sampler, tokens, *_ = problem
    n = tokens.shape[2]
    generator = torch.Generator().manual_seed(seed)
    # Shuffled within each cell of the sequence.
    order = torch.cat(
        [
            cell[torch.randperm(len(cell), generator=generator)]
            for cell in torch.arange(n).tensor_split(min(sampler.cells.num_landmarks, n))
        ]
    )
    torch.testing.assert_close(sampler(tokens[:, :, order]), sampler(tokens), **ROUNDING)


@given(problems(), st.floats(-100, 100), st.floats(0.1, 10))
def test_follows_tokens_that_move_and_grow(problem, shift, factor):
    sampler, tokens, grid, mask = problem
    moved = sampler(factor * tokens + shift, grid, mask)
    expected = factor * sampler(tokens, grid, mask) + shift
    if mask is not None:
        padding = sampler.landmark_padding_mask(grid, mask)[:, None, :, None]
        expected = expected.masked_fill(padding, 0)
    torch.testing.assert_close(moved, expected, rtol=1e-8, atol=1e-8)


@given(problems(), st.sampled_from([1e4, float("inf"), float("nan")]))
def test_other_samples_never_affect_a_sample(problem, content):
    sampler, tokens, grid, mask = problem
    changed = tokens.clone()
    changed[1] = content
    results = [sampler(each, grid, mask)[0] for each in (tokens, changed)]
    torch.testing.assert_close(*results, rtol=0, atol=0)


@given(problems(), st.sampled_from([7e3, float("inf"), float("nan")]))
def test_content_of_padding_never_matters(problem, content):
    sampler, tokens, grid, mask = problem
    if mask is None:
        return
    results = []
    for fill in (0.0, content):
        filled = tokens.masked_fill(mask[:, None, :, None], fill).requires_grad_()
        landmarks = sampler(filled, grid, mask)
        (gradient,) = torch.autograd.grad(landmarks.square().sum(), filled)
        results.append((landmarks, gradient))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


@given(problems())
def test_landmarks_of_a_padded_sequence_are_those_of_the_sequence(problem):
    sampler, tokens, _, mask = problem
    if mask is None:
        return
    landmarks = sampler(tokens, None, mask)
    padding = sampler.landmark_padding_mask((tokens.shape[2],), mask)
    for sample in range(2):
        alone = sampler(tokens[sample : sample + 1, :, ~mask[sample]])
        torch.testing.assert_close(landmarks[sample, :, ~padding[sample]], alone[0], **ROUNDING)


@given(
    lengths=st.lists(st.integers(0, 12), min_size=1, max_size=4),
    prefix=st.integers(0, 2),
    seed=seeds,
)
def test_packed_sequences_have_the_landmarks_of_each_alone(lengths, prefix, seed):
    lengths = [prefix + length for length in lengths]
    tokens = normal(sum(lengths), 2, 3, seed=seed)
    sampler = KMeansLandmarks(4)
    landmarks, padding = sampler.forward_varlen(tokens, offsets(lengths), num_prefix_tokens=prefix)
    for own, mask, sequence in zip(landmarks, padding, tokens.split(lengths), strict=True):
        alone = sampler(sequence[None, prefix:].movedim(2, 1))
        torch.testing.assert_close(own[:, ~mask], alone[0], rtol=0, atol=0)


@pytest.mark.parametrize("padded", [False, True])
def test_gradients_flow_through_the_means(padded):
    tokens = normal(2, 2, 12, 2, seed=0).requires_grad_()
    mask = torch.tensor([[False] * 8 + [True] * 4, [False] * 12]) if padded else None

    def landmarks(x):
        return KMeansLandmarks(5)(x, (3, 4), mask)

    assert gradcheck(landmarks, tokens)
    assert gradgradcheck(landmarks, tokens)


def test_the_gradient_of_a_mean_is_shared_by_its_tokens():
    tokens = torch.tensor([0.0, 9.0, 1.0, 10.0, 11.0]).view(1, 1, 5, 1).requires_grad_()
    landmarks = KMeansLandmarks(2, 3)(tokens)
    torch.testing.assert_close(landmarks.flatten(), torch.tensor([0.5, 10.0]))
    landmarks.backward(torch.tensor([1.0, 6.0]).view(1, 1, 2, 1))
    torch.testing.assert_close(tokens.grad.flatten(), torch.tensor([0.5, 2.0, 0.5, 2.0, 2.0]))


def test_the_first_of_equally_near_landmarks_gets_a_token():
    tokens = torch.tensor([-1.0, -1.0, 1.0, 1.0, 0.0]).view(1, 1, 5, 1)
    labels = softattn.eager.nearest_landmarks(tokens, tokens[:, :, 1:4], None, None)
    assert labels.flatten().tolist() == [0, 0, 1, 1, 0]


@pytest.mark.parametrize("normalization", ["token", "softmax", "none", "landmark"])
def test_fewer_distinct_tokens_than_landmarks(normalization):
    distinct = normal(2, 1, 3, 4, seed=0, dtype=torch.float32)
    tokens = distinct.repeat(1, 1, 20, 1).requires_grad_()
    landmarks = KMeansLandmarks(9)(tokens)
    output = softattn.softmax_free_attention(
        tokens, None, tokens, landmarks, normalization=normalization
    )
    (gradient,) = torch.autograd.grad(output.square().sum(), tokens)
    assert landmarks.isfinite().all() and gradient.isfinite().all()
    if normalization == "token":
        exact = softattn.gaussian_attention(tokens, None, tokens, normalize=True)
        # The inverse has a ridge of 0.01, the exact operator has none.
        torch.testing.assert_close(output, exact, rtol=0, atol=1e-2)


def test_nan_reaches_its_own_sample_alone():
    tokens = normal(3, 2, 20, 3, seed=0)
    tokens[1, 0, 4, 1] = float("nan")
    landmarks = KMeansLandmarks(4)(tokens)
    assert landmarks[1, 0].isnan().any()
    assert landmarks[[0, 2]].isfinite().all() and landmarks[1, 1].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_summed_in_float32(dtype):
    tokens = normal(2, 2, 400, 3, seed=0, dtype=dtype)
    sampler = KMeansLandmarks(6, 3)
    landmarks = sampler(tokens)
    starts = sampler.cells(tokens)
    assert landmarks.dtype == dtype
    for sample in range(2):
        for head in range(2):
            expected = lloyd(tokens[sample, head].double(), starts[sample, head].double(), 3)
            torch.testing.assert_close(landmarks[sample, head], expected.to(dtype))


@given(
    outer=st.tuples(st.integers(0, 2), st.integers(0, 3)),
    n=st.integers(0, 40),
    m=st.integers(1, 6),
    seed=seeds,
)
def test_sums_by_index_are_those_by_products(outer, n, m, seed):
    tokens = normal(*outer, n, 3, seed=seed)
    # The label m is that of padding.
    labels = torch.randint(m + 1, (*outer, n), generator=torch.Generator().manual_seed(seed))
    by_index, by_products = (
        sums(tokens, labels, m, torch.float64)
        for sums in (clusters._sums_by_index, clusters._sums_by_products)
    )
    for one, other in zip(by_index, by_products, strict=True):
        torch.testing.assert_close(one, other)


def test_tokens_far_from_the_origin_find_their_nearest_landmark():
    tokens = normal(1, 1, 200, 3, seed=0)
    sampler = KMeansLandmarks(8, 3)
    far = sampler((tokens + 1000).float()).double() - 1000
    torch.testing.assert_close(far, sampler(tokens), rtol=0, atol=1e-3)


def test_every_run_gives_the_same_bits(poisoned_memory):
    tokens = normal(2, 2, 500, 4, seed=0, dtype=torch.float32).requires_grad_()
    results = []
    for _ in range(2):
        landmarks = KMeansLandmarks(9)(tokens)
        results.append((landmarks, *torch.autograd.grad(landmarks.square().sum(), tokens)))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_no_block_of_tokens_by_landmarks_is_made(tiles):
    n, m, d = 2**12, 64, 4
    tokens = torch.randn(1, 1, n, d, requires_grad=True)
    with LargestTensor() as largest:
        landmarks = KMeansLandmarks(m)(tokens)
        (gradient,) = torch.autograd.grad(landmarks.square().sum(), tokens, create_graph=True)
        gradient.square().sum().backward()
    if tiles == "many tiles":
        assert largest.elements <= max(n * d, m * streaming._LEAST_LONG_SIDE) < n * m


def test_a_layer_has_them_on_maps_sequences_and_context():
    layer = SoftmaxFreeAttention(8, 2, landmarks=KMeansLandmarks(6), dtype=torch.float64)
    x = normal(2, 5, 7, 8, seed=0)
    layer(x).sum().backward()
    assert all(p.grad.isfinite().all() for p in layer.parameters())
    keys = layer.qk_proj(x).unflatten(-1, (2, 4)).movedim(3, 1)
    expected = softattn.softmax_free_attention(
        keys.flatten(2, 3),
        None,
        layer.v_proj(x).unflatten(-1, (2, 4)).movedim(3, 1).flatten(2, 3),
        KMeansLandmarks(6)(keys.flatten(2, 3), (5, 7)),
    )
    torch.testing.assert_close(
        layer(x).flatten(1, 2), layer.out_proj(expected.movedim(1, 2).flatten(2))
    )
    sequence = x.flatten(1, 2)
    assert layer(sequence, normal(2, 9, 8, seed=1), num_prefix_tokens=2).shape == (2, 35, 8)
    packed = layer(sequence.flatten(0, 1), cu_seqlens=offsets([35, 35]), num_prefix_tokens=1)
    torch.testing.assert_close(packed.unflatten(0, (2, 35)), layer(sequence, num_prefix_tokens=1))


@pytest.mark.parametrize("shape", [(0, 2, 5, 3), (2, 2, 0, 3), (2, 0, 5, 3)])
def test_nothing_at_all(shape):
    tokens = torch.randn(shape, requires_grad=True)
    landmarks = KMeansLandmarks(4)(tokens)
    assert landmarks.shape == (*shape[:2], min(4, shape[2]), 3)
    landmarks.sum().backward()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: KMeansLandmarks(0), "positive int"),
        (lambda: KMeansLandmarks(4, -1), "steps must be an int of at least 0, got -1"),
        (lambda: KMeansLandmarks(4, 1.5), "steps must be an int of at least 0, got 1.5"),
        (lambda: KMeansLandmarks(4, impl="cuda"), "impl must be one of"),
        (lambda: KMeansLandmarks(4)(torch.randn(1, 4, 2)), r"\(batch, heads, tokens, d\)"),
        (
            lambda: KMeansLandmarks(4, impl="triton")(torch.randn(1, 1, 9, 2).double()),
            "impl='triton' was asked for, but",
        ),
    ],
)
def test_bad_arguments_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_repr():
    assert KMeansLandmarks(9, np.int64(3)).extra_repr() == "steps=3, impl='auto'"
    assert KMeansLandmarks().steps == 2 and KMeansLandmarks().cells.num_landmarks == 49
