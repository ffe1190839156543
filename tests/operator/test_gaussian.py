"""The Gaussian block and exact attention."""

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from support.budget import assert_within_budget
from support.strategies import DTYPES, normal, padding_masks, problems, seeds, spreads
from torch.autograd import gradcheck, gradgradcheck

import softattn
from softattn import reference

pytestmark = pytest.mark.usefixtures("tiles")


@given(problem=problems(dtypes=DTYPES))
def test_kernel_is_within_budget(problem):
    q, k, s = problem.query, problem.keys, problem.scale
    block = softattn.gaussian_kernel(q, k, scale=s)
    wide = torch.promote_types(q.dtype, torch.float32)
    truth = reference.gaussian_kernel(q.double(), k.double(), s)
    assert_within_budget(
        block, truth, baseline=reference.gaussian_kernel(q.to(wide), k.to(wide), s), magnitude=1
    )


@given(problem=problems(dtypes=(torch.float64, torch.float32)))
def test_gram_block_is_symmetric_and_positive_semidefinite(problem):
    gram = softattn.gaussian_kernel(problem.query, problem.query, scale=problem.scale)
    torch.testing.assert_close(gram, gram.mT, rtol=0, atol=0)
    assert torch.all(gram.diagonal(dim1=-2, dim2=-1) == 1)
    if gram.numel():
        rounding = 4 * gram.shape[-1] * torch.finfo(gram.dtype).eps
        assert torch.linalg.eigvalsh(gram.double()).min() >= -rounding


@given(problem=problems(), offset_seed=seeds)
def test_kernel_does_not_change_when_all_tokens_move(problem, offset_seed):
    offset = normal(problem.query.shape[-1], seed=offset_seed, spread=3)
    moved = softattn.gaussian_kernel(
        problem.query + offset, problem.keys + offset, scale=problem.scale
    )
    still = softattn.gaussian_kernel(problem.query, problem.keys, scale=problem.scale)
    torch.testing.assert_close(moved, still, rtol=1e-11, atol=1e-13)


@given(problem=problems(dtypes=DTYPES), normalize=st.booleans())
def test_attention_is_within_budget(problem, normalize):
    q, k, v, s = problem.query, problem.keys, problem.value, problem.scale
    if k.shape[2] == 0:
        return
    output = softattn.gaussian_attention(q, problem.key, v, normalize=normalize, scale=s)
    wide = torch.promote_types(q.dtype, torch.float32)
    truth = reference.gaussian_attention(
        q.double(), k.double(), v.double(), normalize=normalize, scale=s
    )
    plain = reference.gaussian_attention(
        q.to(wide), k.to(wide), v.to(wide), normalize=normalize, scale=s
    )
    magnitude = 1 if normalize else k.shape[2]
    assume(plain.isfinite().all())
    # Products instead of differences leave an error of their own in the distances.
    distances = 1 + torch.cat([q, k], 2).double().square().sum(-1).amax() if q.numel() else 1
    assert_within_budget(
        output,
        truth,
        baseline=plain.to(v.dtype),
        magnitude=magnitude * distances * v.double().abs().amax(),
    )


@given(data=st.data(), problem=problems(tokens=st.integers(1, 12)), normalize=st.booleans())
def test_padding_is_ignored(data, problem, normalize):
    keys = problem.keys
    mask = data.draw(padding_masks(keys.shape[0], keys.shape[2]))
    hidden = mask[:, None, :, None]

    def attend(filling):
        fill = lambda t: t.masked_fill(hidden, filling)  # noqa: E731
        query, key = (problem.query, fill(keys)) if problem.key is not None else (fill(keys), None)
        return softattn.gaussian_attention(
            query, key, fill(problem.value), normalize=normalize, key_padding_mask=mask
        )

    torch.testing.assert_close(attend(float("nan")), attend(1e4), rtol=0, atol=0)
    truth = reference.gaussian_attention(
        problem.query, keys, problem.value, normalize=normalize, key_padding_mask=mask
    )
    nothing_seen = mask.all(-1)[:, None, None, None]
    truth = truth.masked_fill(hidden if problem.key is None else nothing_seen, 0)
    torch.testing.assert_close(attend(0.0), truth.masked_fill(nothing_seen, 0))


def test_normalised_row_of_a_query_far_from_all_keys_is_the_nearest_key():
    query = torch.tensor([[[[1e3, 0.0]]]])
    key = torch.tensor([[[[0.0, 0.0], [1.0, 0.0], [0.0, 5.0]]]])
    value = torch.tensor([[[[1.0], [2.0], [3.0]]]])
    output = softattn.gaussian_attention(query, key, value, normalize=True)
    torch.testing.assert_close(output, torch.tensor([[[[2.0]]]]))


def test_padded_key_does_not_hide_that_all_others_are_far():
    query = torch.zeros(1, 1, 1, 2)
    key = torch.tensor([[[[1e3, 0.0], [0.0, 0.0]]]])
    value = torch.tensor([[[[2.0], [7.0]]]])
    mask = torch.tensor([[False, True]])
    output = softattn.gaussian_attention(query, key, value, normalize=True, key_padding_mask=mask)
    torch.testing.assert_close(output, torch.full((1, 1, 1, 1), 2.0))


def test_no_weight_exceeds_one_where_rounding_swallows_the_distance():
    key = 1e4 * torch.nn.functional.normalize(torch.randn(1, 1, 30, 16), dim=-1)
    query = key + 1e-3 * torch.randn_like(key)
    sums = softattn.gaussian_attention(query, key, torch.ones(1, 1, 30, 1))
    assert sums.max() <= 1.001


def test_common_offset_costs_no_digits():
    tokens = torch.randn(1, 1, 40, 8)
    near = softattn.gaussian_attention(tokens, None, tokens)
    moved = tokens + 1024
    far = softattn.gaussian_attention(moved, None, moved - 1024)
    back = softattn.gaussian_attention(moved - 1024, None, moved - 1024)
    assert (far - back).abs().max() <= 1e-5 * near.abs().max()


def test_where_keys_have_one_norm_it_is_softmax_attention():
    key = torch.nn.functional.normalize(normal(2, 2, 40, 8, seed=0), dim=-1) * 2.5
    query, value = normal(2, 2, 30, 8, seed=1), normal(2, 2, 40, 3, seed=2)
    softmax = torch.nn.functional.scaled_dot_product_attention(query, key, value)
    gaussian = softattn.gaussian_attention(query, key, value, normalize=True)
    torch.testing.assert_close(gaussian, softmax)


@pytest.mark.parametrize("crossed", [False, True])
@pytest.mark.parametrize("normalize", [False, True])
def test_attention_gradients(crossed, normalize):
    query, key = normal(2, 1, 4, 2, seed=0), normal(2, 1, 5, 2, seed=1)
    value = normal(2, 1, 5, 3, seed=2).requires_grad_()
    query.requires_grad_(), key.requires_grad_()
    mask = torch.tensor([[False, False, True, False, False], [False] * 5])

    def attend(query, key, value):
        return softattn.gaussian_attention(
            query if crossed else key,
            key if crossed else None,
            value,
            normalize=normalize,
            key_padding_mask=mask,
        )

    inputs = (query, key, value)
    if not crossed:
        inputs, attend_to = (key, value), attend
        attend = lambda key, value: attend_to(None, key, value)  # noqa: E731
    assert gradcheck(attend, inputs)
    assert gradgradcheck(attend, inputs)


@pytest.mark.parametrize("same", [False, True])
def test_kernel_gradients(same):
    query, key = normal(2, 1, 4, 3, seed=0), normal(2, 1, 3, 3, seed=1)
    query.requires_grad_(), key.requires_grad_()
    inputs = (query,) if same else (query, key)

    def kernel(query, key=None):
        return softattn.gaussian_kernel(query, query if key is None else key)

    assert gradcheck(kernel, inputs)
    assert gradgradcheck(kernel, inputs)


@given(seed=seeds, spread=spreads)
def test_attention_over_a_tile_border_is_that_of_one_row_at_a_time(seed, spread):
    tokens = normal(1, 1, 9, 3, seed=seed, spread=spread)
    value = normal(1, 1, 9, 2, seed=seed + 1)
    whole = softattn.gaussian_attention(tokens, None, value)
    rows = [softattn.gaussian_attention(tokens[:, :, i : i + 1], tokens, value) for i in range(9)]
    torch.testing.assert_close(whole, torch.cat(rows, 2), rtol=1e-11, atol=1e-13)
