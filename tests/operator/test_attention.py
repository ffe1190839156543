"""The laws of softmax-free attention."""

from dataclasses import replace

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from support.budget import EXACT, assert_within_budget
from support.denominators import denominators_stay_off_the_floor
from support.strategies import (
    DTYPES,
    NORMALIZATIONS,
    QUOTIENTS,
    normal,
    padding_masks,
    problems,
    seeds,
)
from torch.utils.checkpoint import checkpoint

import softattn
from softattn import reference, softmax_free_attention

pytestmark = pytest.mark.usefixtures("tiles")

# Rounding of float64, enlarged by the condition of A + 0.01 I and by quotients near the floor.
ROUNDING = dict(rtol=1e-9, atol=1e-9)


@given(problem=problems(dtypes=DTYPES))
def test_output_is_within_budget(problem):
    assume(denominators_stay_off_the_floor(problem))
    q, k = problem.query, problem.keys
    # Products instead of differences leave an error of their own in the distances.
    far = torch.cat([q, k, problem.landmarks], 2).double().square().sum(-1).amax()
    assert_within_budget(
        problem.solve(softmax_free_attention),
        problem.truth(),
        baseline=problem.plain(),
        magnitude=problem.magnitude().amax() * (1 + far)
        if problem.value.numel() and q.numel()
        else 1,
    )


@given(problem=problems(), data=st.data())
def test_permuting_tokens_permutes_outputs(problem, data):
    n = problem.keys.shape[2]
    order = torch.tensor(data.draw(st.permutations(range(n))), dtype=torch.long)
    permuted = replace(
        problem,
        query=problem.query[:, :, order] if problem.key is None else problem.query,
        key=None if problem.key is None else problem.key[:, :, order],
        value=problem.value[:, :, order],
    )
    expected = problem.solve(softmax_free_attention)
    if problem.key is None:
        expected = expected[:, :, order]
    torch.testing.assert_close(permuted.solve(softmax_free_attention), expected, **ROUNDING)


@given(problem=problems(dtypes=DTYPES), seed=seeds)
def test_other_samples_and_heads_leave_an_output_bit_identical(problem, seed):
    output = problem.solve(softmax_free_attention)
    mixed = problem.map(
        lambda t: torch.cat([t[:1, :1], normal(*t.shape, seed=seed, spread=3)[:1, 1:].to(t)], 1)
    )
    mixed = replace(
        problem,
        **{
            name: torch.cat([getattr(mixed, name), normal(*t.shape, seed=seed)[1:].to(t)])
            for name in ("query", "key", "value", "landmarks")
            if (t := getattr(problem, name)) is not None
        },
    )
    torch.testing.assert_close(mixed.solve(softmax_free_attention)[0, 0], output[0, 0], **EXACT)


@given(problem=problems())
def test_output_of_a_sample_alone_is_that_in_its_batch(problem):
    alone = problem.map(lambda t: t[:1])
    torch.testing.assert_close(
        alone.solve(softmax_free_attention),
        problem.solve(softmax_free_attention)[:1],
        **ROUNDING,
    )


@given(problem=problems(dtypes=(torch.float32,)), seed=seeds)
def test_nan_stays_in_its_sample(problem, seed):
    assume(problem.query.shape[0] > 1 and problem.query.numel() and problem.keys.numel())
    poisoned = problem.map(torch.clone)
    poisoned.query[0, :, 0] = float("nan")
    output = poisoned.solve(softmax_free_attention)
    torch.testing.assert_close(output[1:], problem.solve(softmax_free_attention)[1:], **EXACT)
    assert output[0, :, 0].isnan().all()


@given(problem=problems(), seed=seeds, a=st.floats(-2, 2), b=st.floats(-2, 2))
def test_linear_in_values(problem, seed, a, b):
    other = normal(*problem.value.shape, seed=seed)
    mixed = replace(problem, value=a * problem.value + b * other)
    expected = a * problem.solve(softmax_free_attention) + b * replace(problem, value=other).solve(
        softmax_free_attention
    )
    torch.testing.assert_close(mixed.solve(softmax_free_attention), expected, **ROUNDING)


# Softmax changes when the queries are moved with the keys.
@given(problem=problems(normalizations=("none", "landmark", "token")), seed=seeds)
def test_moving_all_tokens_changes_nothing(problem, seed):
    offset = normal(problem.query.shape[-1], seed=seed, spread=3)
    moved = replace(
        problem,
        query=problem.query + offset,
        key=None if problem.key is None else problem.key + offset,
        landmarks=problem.landmarks + offset,
    )
    torch.testing.assert_close(
        moved.solve(softmax_free_attention), problem.solve(softmax_free_attention), **ROUNDING
    )


@given(problem=problems(normalizations=QUOTIENTS))
def test_constant_values_come_back(problem):
    assume(denominators_stay_off_the_floor(problem))
    constant = replace(problem, value=torch.full_like(problem.value, 3.25))
    output = constant.solve(softmax_free_attention)
    torch.testing.assert_close(output, torch.full_like(output, 3.25), **ROUNDING)


@given(problem=problems(normalizations=QUOTIENTS, landmarks=st.integers(1, 12)))
def test_constant_values_shrink_at_most(problem):
    constant = replace(problem, value=torch.ones_like(problem.value))
    output = constant.solve(softmax_free_attention)
    assert ((output >= -1e-9) & (output <= 1 + 1e-9)).all()


@given(
    seed=seeds,
    n=st.integers(1, 10),
    crossed=st.booleans(),
    normalization=st.sampled_from(["none", "token"]),
)
def test_with_every_token_a_landmark_it_is_the_oracle(seed, n, crossed, normalization):
    key = normal(2, 2, n, 4, seed=seed, spread=4)
    assume(torch.linalg.cond(reference.gaussian_kernel(key, key)).max() < 1e3)
    query = normal(2, 2, 6, 4, seed=seed + 1, spread=4) if crossed else key
    value = normal(2, 2, n, 3, seed=seed + 2)
    output = softmax_free_attention(
        query,
        key if crossed else None,
        value,
        key.clone(),
        normalization=normalization,
        pinv=softattn.NewtonPinv("transpose"),
    )
    normalize = normalization == "token"
    exact = reference.gaussian_attention(query, key, value, normalize=normalize)
    if normalize and crossed:
        row_sums = reference.gaussian_kernel(query, key).sum(-1)
        assume(bool((row_sums > 1e-100).all()))
    torch.testing.assert_close(output, exact, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_copy_of_the_queries_as_keys_is_cross_attention(normalization):
    tokens, value = normal(1, 2, 9, 3, seed=0), normal(1, 2, 9, 2, seed=1)
    landmarks = normal(1, 2, 3, 3, seed=2)

    def attend(key):
        return softmax_free_attention(tokens, key, value, landmarks, normalization=normalization)

    torch.testing.assert_close(attend(tokens), attend(None), **EXACT)
    copied = attend(tokens.clone())
    if normalization in QUOTIENTS:
        assert (copied - attend(None)).abs().max() > 1e-3
    else:
        torch.testing.assert_close(copied, attend(None), **ROUNDING)


@pytest.mark.parametrize("distance", [1.0, 30.0, 1e3])
def test_query_far_from_every_landmark_does_not_fade(distance):
    query = torch.full((1, 1, 1, 4), distance)
    key = torch.randn(1, 1, 8, 4)
    landmarks, ones = key[:, :, :3].clone(), torch.ones(1, 1, 8, 2)
    output = softmax_free_attention(query, key, ones, landmarks, normalization="token")
    torch.testing.assert_close(output, torch.ones(1, 1, 1, 2))


@given(problem=problems(), data=st.data())
def test_padding_is_ignored(problem, data):
    keys = problem.keys
    mask = data.draw(padding_masks(keys.shape[0], keys.shape[2]))
    hidden = mask[:, None, :, None]

    def attend(filling):
        keys = problem.keys.masked_fill(hidden, filling)
        filled = replace(
            problem,
            query=keys if problem.key is None else problem.query,
            key=None if problem.key is None else keys,
            value=problem.value.masked_fill(hidden, filling),
        )
        return filled.solve(softmax_free_attention, key_padding_mask=mask)

    output = attend(float("nan"))
    torch.testing.assert_close(output, attend(1e4), **EXACT)
    assert output.isfinite().all()
    assert torch.all(output[mask.all(-1)] == 0)
    if problem.key is None:
        assert torch.all(output.masked_select(hidden) == 0)
    for sample in range(len(mask)):
        kept = ~mask[sample]
        unpadded = problem.map(lambda t, i=sample: t[i : i + 1])
        unpadded = replace(
            unpadded,
            query=unpadded.query[:, :, kept] if problem.key is None else unpadded.query,
            key=None if problem.key is None else unpadded.key[:, :, kept],
            value=unpadded.value[:, :, kept],
        )
        padded = output[sample : sample + 1]
        torch.testing.assert_close(
            padded[:, :, kept] if problem.key is None else padded,
            unpadded.solve(softmax_free_attention),
            **ROUNDING,
        )


@given(problem=problems(), data=st.data())
def test_padded_landmarks_are_as_if_not_there(problem, data):
    batch, _, m, _ = problem.landmarks.shape
    mask = data.draw(padding_masks(batch, m))
    nan = problem.landmarks.masked_fill(mask[:, None, :, None], float("nan"))
    output = replace(problem, landmarks=nan).solve(
        softmax_free_attention, landmark_padding_mask=mask
    )
    for sample in range(batch):
        alone = problem.map(lambda t, i=sample: t[i : i + 1])
        alone = replace(alone, landmarks=alone.landmarks[:, :, ~mask[sample]])
        torch.testing.assert_close(
            output[sample : sample + 1], alone.solve(softmax_free_attention), **ROUNDING
        )


@given(problem=problems(dtypes=(torch.float32, torch.bfloat16)))
def test_same_call_gives_the_same_bits(problem):
    problem = problem.map(lambda t: t.requires_grad_())
    runs = []
    for _ in range(2):
        output = problem.solve(softmax_free_attention)
        runs.append((output, *torch.autograd.grad(output.sum(), problem.tensors())))
    for first, second in zip(*runs, strict=True):
        torch.testing.assert_close(first, second, **EXACT)


@given(problem=problems())
def test_strides_do_not_matter(problem):
    scattered = problem.map(lambda t: t.transpose(1, 2).contiguous().transpose(1, 2))
    torch.testing.assert_close(
        scattered.solve(softmax_free_attention), problem.solve(softmax_free_attention)
    )
    shared = problem.map(lambda t: t[:1, :1].expand_as(t))
    torch.testing.assert_close(
        shared.solve(softmax_free_attention),
        shared.map(torch.Tensor.contiguous).solve(softmax_free_attention),
    )


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@pytest.mark.parametrize(("n", "m"), [(0, 0), (0, 3), (5, 0), (1, 1), (2, 7)])
def test_few_tokens_or_landmarks(normalization, n, m):
    tokens, value = normal(2, 1, n, 3, seed=0), normal(2, 1, n, 4, seed=1)
    tokens.requires_grad_()
    output = softmax_free_attention(
        tokens, None, value, normal(2, 1, m, 3, seed=2), normalization=normalization
    )
    assert output.shape == (2, 1, n, 4)
    assert output.isfinite().all()
    output.sum().backward()
    assert tokens.grad.isfinite().all()
    if m == 0:
        nothing = value if normalization in QUOTIENTS else torch.zeros_like(value)
        torch.testing.assert_close(output, nothing)


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_vmap_over_the_batch(normalization):
    query, value = normal(4, 2, 7, 3, seed=0), normal(4, 2, 7, 2, seed=1)
    landmarks = normal(4, 2, 3, 3, seed=2)

    def attend(query, value, landmarks):
        sample = softmax_free_attention(
            query[None], None, value[None], landmarks[None], normalization=normalization
        )
        return sample[0]

    batched = softmax_free_attention(query, None, value, landmarks, normalization=normalization)
    torch.testing.assert_close(torch.vmap(attend)(query, value, landmarks), batched)
    gradient = torch.func.grad(lambda *inputs: attend(*inputs).square().sum())
    query.requires_grad_()
    output = softmax_free_attention(query, None, value, landmarks, normalization=normalization)
    (expected,) = torch.autograd.grad(output.square().sum(), query)
    actual = torch.vmap(gradient)(query.detach(), value, landmarks)
    torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_padding_costs_no_digits_far_from_the_origin(normalization):
    tokens = torch.randn(1, 1, 60, 8) + 1e3
    value = torch.randn(1, 1, 60, 4)
    landmarks = torch.randn(1, 1, 12, 8) + 1e3
    padding = (torch.arange(60) >= 20)[None]
    landmark_padding = (torch.arange(12) >= 5)[None]
    padded = softmax_free_attention(
        tokens,
        None,
        value,
        landmarks,
        normalization=normalization,
        key_padding_mask=padding,
        landmark_padding_mask=landmark_padding,
    )
    kept = [t[:, :, :20].double() for t in (tokens, value)]
    truth = reference.softmax_free_attention(
        kept[0], None, kept[1], landmarks[:, :, :5].double(), normalization=normalization
    )
    assert (padded[:, :, :20] - truth).abs().max() <= 1e-3 * truth.abs().max()


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@pytest.mark.parametrize("size", [1e3, 1e5, 1e6])
def test_outlier_does_not_spoil_the_other_tokens(normalization, size):
    tokens = torch.randn(1, 1, 100, 8)
    tokens[0, 0, 7] = size
    value = torch.randn(1, 1, 100, 4)
    landmarks = softattn.AvgPoolLandmarks(9)(tokens)
    output = softmax_free_attention(tokens, None, value, landmarks, normalization=normalization)
    truth = reference.softmax_free_attention(
        tokens.double(), None, value.double(), landmarks.double(), normalization=normalization
    )
    assert (output - truth).abs().max() <= 1e-3 * truth.abs().max()


# torch.func.jvp warns of what it uses itself.
@pytest.mark.filterwarnings("ignore:`torch.jit.script`")
def test_forward_mode_is_refused_and_not_silently_zero():
    gram = softattn.gaussian_kernel(*[normal(1, 1, 3, 2, seed=0)] * 2)
    for method in ("transpose", "minimax"):
        with pytest.raises(RuntimeError, match="jvp"):
            torch.func.jvp(
                lambda a, method=method: softattn.newton_pinv(a, method=method, ridge=0.1),
                (gram,),
                (torch.ones_like(gram),),
            )


@pytest.mark.parametrize("detached", ["query", "key"])
def test_view_of_the_queries_as_keys_is_self_attention(detached):
    tokens, value = normal(1, 2, 9, 3, seed=0).requires_grad_(), normal(1, 2, 9, 2, seed=1)
    landmarks = normal(1, 2, 3, 3, seed=2)
    expected = softmax_free_attention(tokens, None, value, landmarks)
    (gradient,) = torch.autograd.grad(expected.square().sum(), tokens)
    query, key = tokens.view_as(tokens), tokens.view_as(tokens)
    query, key = (query.detach(), key) if detached == "query" else (query, key.detach())
    output = softmax_free_attention(query, key, value, landmarks)
    torch.testing.assert_close(output, expected, **EXACT)
    torch.testing.assert_close(
        torch.autograd.grad(output.square().sum(), tokens)[0], gradient, **EXACT
    )


def test_reentrant_checkpoint_of_self_attention_has_its_gradient():
    tokens, value = normal(1, 2, 9, 3, seed=0).requires_grad_(), normal(1, 2, 9, 2, seed=1)
    landmarks = normal(1, 2, 3, 3, seed=2)

    def attend(query, key):
        return softmax_free_attention(query, key, value, landmarks)

    (expected,) = torch.autograd.grad(attend(tokens, tokens).square().sum(), tokens)
    checkpoint(attend, tokens, tokens, use_reentrant=True).square().sum().backward()
    torch.testing.assert_close(tokens.grad, expected, **EXACT)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@pytest.mark.parametrize("kind", ["equal", "zero", "huge", "one-hot", "two points", "tiny"])
def test_adversarial_tokens_stay_finite(dtype, normalization, kind):
    n, d = 64, 8
    tokens = (
        {
            "equal": torch.ones(1, 1, n, d) * 50,
            "zero": torch.zeros(1, 1, n, d),
            "huge": torch.nn.functional.normalize(torch.randn(1, 1, n, d), dim=-1) * 1e4,
            "one-hot": torch.eye(d).repeat(n // d, 1)[None, None],
            "two points": torch.tensor([1e4, -1e4])
            .repeat(n // 2)[None, None, :, None]
            .expand(-1, -1, -1, d),
            "tiny": torch.randn(1, 1, n, d) * 1e-7,
        }[kind]
        .to(dtype)
        .clone()
        .requires_grad_()
    )
    value = torch.randn(1, 1, n, 4).to(dtype)
    landmarks = softattn.AvgPoolLandmarks(16)(tokens)
    output = softmax_free_attention(tokens, None, value, landmarks, normalization=normalization)
    assert output.isfinite().all()
    if normalization == "token" and kind in ("equal", "zero", "tiny"):
        mean = value.float().mean(2, keepdim=True).expand_as(value)
        # The ridge takes 0.01 / (16 + 0.01) of the sums, and gives it to the diagonal.
        torch.testing.assert_close(output.float(), mean, rtol=0.02, atol=0.02)
    output.sum().backward()
    assert tokens.grad.isfinite().all()
