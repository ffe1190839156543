"""Attention through the Triton kernels: interpreted, or on a GPU with ``--device cuda``."""

from dataclasses import replace

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from support.budget import EXACT, assert_within_budget
from support.denominators import (
    denominator_and_terms,
    denominators_stay_off_the_floor,
    problem_across_the_floor,
)
from support.inverses import by_newton
from support.strategies import NORMALIZATIONS, QUOTIENTS, normal, padding_masks, problems, seeds

import softattn
from softattn import reference, softmax_free_attention

pytestmark = pytest.mark.usefixtures("kernel_tiles", "poisoned_memory")

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
# The interpreter takes a program after the other, so there are fewer examples than elsewhere.
few = settings(max_examples=max(settings.default.max_examples // 4, 1))


def triton_problems(**options):
    """Problems that take several of the smallest tiles, of tokens and of landmarks."""
    options = {"tokens": st.integers(0, 40), "landmarks": st.integers(1, 20)} | options
    return problems(**{"dtypes": DTYPES} | options)


def answer_and_gradients_of(problem, attention, **options):
    """The output, and gradients of a random projection of it in all of the problem's tensors."""
    problem = problem.map(lambda t: t.detach().requires_grad_())
    output = problem.solve(attention, **options)
    weights = normal(*output.shape, seed=5).to(output)
    return output, *torch.autograd.grad((output * weights).sum(), problem.tensors())


def gradients_of(problem, attention, **options):
    return answer_and_gradients_of(problem, attention, **options)[1:]


def test_memory_is_poisoned():
    assert torch.empty(3).isnan().all()


@few
@given(problem=triton_problems())
def test_answer_is_within_budget(device, problem):
    assume(denominators_stay_off_the_floor(problem))
    output = problem.map(lambda t: t.to(device)).solve(softmax_free_attention, impl="triton")
    filled = problem.value.numel() and problem.query.numel()
    assert_within_budget(
        output.cpu(),
        problem.truth(),
        baseline=problem.plain(),
        magnitude=problem.magnitude().amax() * (1 + problem.spread() ** 2) if filled else 1,
    )


@few
@given(problem=triton_problems(near_fields=False))
def test_gradients_are_within_budget(device, problem):
    assume(denominators_stay_off_the_floor(problem))
    assume(problem.query.numel() and problem.value.numel())
    oracle = reference.softmax_free_attention
    wide = torch.promote_types(problem.query.dtype, torch.float32)
    on_device = problem.map(lambda t: t.to(device))
    output, *actual = answer_and_gradients_of(on_device, softmax_free_attention, impl="triton")
    true_output, *truth = answer_and_gradients_of(problem.to(torch.float64), oracle)
    plain = gradients_of(problem.to(wide), oracle)
    magnitude = problem.magnitude().amax() * 100 * (1 + problem.spread() ** 3)
    inherited = gradient_errors_from_output(problem, output.cpu() - true_output)
    for a, t, p, i in zip(actual, truth, plain, inherited, strict=True):
        assert_within_budget(
            a.cpu(), t, baseline=p.to(a.dtype), magnitude=magnitude, inherited=i.abs().amax()
        )


def gradient_errors_from_output(problem, error):
    """What the error of an output adds to the gradients of ``answer_and_gradients_of``.

    That of a denominator is computed as dD = −g·O / D, so it errs by the gradient of
    −(g·δO) log D.
    """
    problem = problem.to(torch.float64).map(lambda t: t.detach().requires_grad_())
    if problem.normalization not in QUOTIENTS:
        return [torch.zeros_like(t) for t in problem.tensors()]
    denominator, _ = denominator_and_terms(problem)
    along = (normal(*error.shape, seed=5) * error.detach()).sum(-1, keepdim=True)
    return torch.autograd.grad(
        (along * denominator.log()).sum(), problem.tensors(), materialize_grads=True
    )


@pytest.mark.parametrize("normalization", QUOTIENTS)
def test_floor_and_its_gradient_are_those_of_eager(device, normalization):
    problem = problem_across_the_floor(normalization)
    on_device = problem.to(torch.float32).map(lambda t: t.to(device))
    expected = problem.solve(softmax_free_attention)
    output = on_device.solve(softmax_free_attention, impl="triton")
    torch.testing.assert_close(output.cpu().double(), expected, rtol=1e-3, atol=1e-3)
    expected = gradients_of(problem, softmax_free_attention)
    gradients = gradients_of(on_device, softmax_free_attention, impl="triton")
    for gradient, truth in zip(gradients, expected, strict=True):
        assert (gradient.cpu() - truth).norm() <= 1e-3 * truth.norm()


@few
@given(problem=triton_problems(), data=st.data())
def test_padding_is_never_read(device, problem, data):
    mask = data.draw(padding_masks(problem.keys.shape[0], problem.keys.shape[2]))
    hidden = mask[:, None, :, None]
    is_self = problem.key is None

    def output_and_gradients(filling):
        def fill(t):
            return t.masked_fill(hidden, filling)

        filled = replace(
            problem,
            query=fill(problem.query) if is_self else problem.query,
            key=None if is_self else fill(problem.key),
            value=fill(problem.value),
        ).map(lambda t: t.to(device).requires_grad_())
        output = filled.solve(
            softmax_free_attention, key_padding_mask=mask.to(device), impl="triton"
        )
        return output, *torch.autograd.grad(output.sum(), filled.tensors())

    output, *gradients = with_nan = output_and_gradients(float("nan"))
    for of_nan, of_number in zip(with_nan, output_and_gradients(100.0), strict=True):
        torch.testing.assert_close(of_nan, of_number, **EXACT)
    for of_padding in (gradients[0 if is_self else 1], gradients[1 if is_self else 2]):
        assert (of_padding.cpu().masked_select(hidden) == 0).all()
    if is_self:
        assert (output.cpu().masked_select(hidden) == 0).all()


@few
@given(problem=triton_problems(), data=st.data())
def test_a_padded_sample_gives_what_it_gives_alone(device, problem, data):
    mask = data.draw(padding_masks(1, problem.keys.shape[2]))
    first = problem.map(lambda t: t[:1].to(device))
    kept = (~mask[0]).to(device)
    padded = first.solve(softmax_free_attention, key_padding_mask=mask.to(device), impl="triton")
    without = replace(
        first,
        query=first.query[:, :, kept] if first.key is None else first.query,
        key=None if first.key is None else first.key[:, :, kept],
        value=first.value[:, :, kept],
    )
    assume(denominators_stay_off_the_floor(without.map(torch.Tensor.cpu)))
    output = padded[:, :, kept] if first.key is None else padded
    alone = without.map(torch.Tensor.cpu)
    assert_within_budget(
        output.cpu(),
        alone.truth(),
        baseline=alone.plain(),
        magnitude=alone.magnitude().amax() * (1 + alone.spread() ** 2) if output.numel() else 1,
    )


@few
@given(problem=triton_problems(), data=st.data())
def test_padded_landmarks_are_as_if_not_there(device, problem, data):
    mask = data.draw(padding_masks(1, problem.landmarks.shape[2]))
    first = problem.map(lambda t: t[:1].to(device))
    hidden = mask[:, None, :, None].to(device)
    nan = replace(first, landmarks=first.landmarks.masked_fill(hidden, float("nan")))
    output = nan.solve(softmax_free_attention, landmark_padding_mask=mask.to(device), impl="triton")
    alone = replace(problem.map(lambda t: t[:1]), landmarks=problem.landmarks[:1, :, ~mask[0]])
    assume(denominators_stay_off_the_floor(alone))
    filled = output.numel() and alone.landmarks.numel()
    assert_within_budget(
        output.cpu(),
        alone.truth(),
        baseline=alone.plain(),
        magnitude=alone.magnitude().amax() * (1 + alone.spread() ** 2) if filled else 1,
    )


@few
@given(problem=triton_problems(), seed=seeds)
def test_other_samples_and_heads_leave_an_answer_bit_identical(device, problem, seed):
    def other(t):
        changed = normal(*t.shape, seed=seed, spread=3).to(t)
        changed[0, 0] = t[0, 0]
        return changed

    output, mixed = (
        p.map(lambda t: t.to(device)).solve(softmax_free_attention, impl="triton")
        for p in (problem, problem.map(other))
    )
    torch.testing.assert_close(mixed[0, 0], output[0, 0], **EXACT)


@few
@given(problem=triton_problems(), seed=seeds)
def test_nan_stays_in_its_sample(device, problem, seed):
    assume(problem.query.shape[0] > 1 and problem.query.numel() and problem.keys.numel())
    clean = problem.map(lambda t: t.to(device))
    poisoned = clean.map(torch.clone)
    poisoned.query[0, :, 0] = float("nan")
    output = poisoned.solve(softmax_free_attention, impl="triton")
    expected = clean.solve(softmax_free_attention, impl="triton")
    torch.testing.assert_close(output[1:], expected[1:], **EXACT)
    assert output[0, :, 0].isnan().all()


@few
@given(problem=triton_problems())
def test_same_call_gives_the_same_bits(device, problem):
    problem = problem.map(lambda t: t.to(device))
    runs = [
        answer_and_gradients_of(problem, softmax_free_attention, impl="triton")
        for _ in range(20 if device.type == "cuda" else 2)
    ]
    for again in runs[1:]:
        for a, b in zip(runs[0], again, strict=True):
            torch.testing.assert_close(a, b, **EXACT)


@few
@given(problem=triton_problems())
def test_strides_do_not_matter(device, problem):
    problem = problem.map(lambda t: t.to(device))
    between_heads = problem.map(lambda t: t.transpose(1, 2).contiguous().transpose(1, 2))
    features_apart = problem.map(lambda t: t.mT.contiguous().mT)
    of_wider_rows = problem.map(lambda t: torch.cat([t, t], -1)[..., : t.shape[-1]])
    expected = problem.solve(softmax_free_attention, impl="triton")
    # The weights of the keys are PyTorch's sums, whose order follows the strides.
    close = dict(rtol=1e-4, atol=1e-5) if problem.normalization == "softmax" else EXACT
    for scattered in (between_heads, features_apart, of_wider_rows):
        torch.testing.assert_close(
            scattered.solve(softmax_free_attention, impl="triton"), expected, **close
        )


@pytest.mark.parametrize("crossed", [False, True])
@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_outputs_are_stored_as_the_tokens_are(device, normalization, crossed):
    """Heads that are columns of a layer's tokens become columns again without a copy."""

    def columns(seed):
        tokens = normal(2, 9, 3, 5, seed=seed).to(device, torch.float32)
        return tokens.transpose(1, 2).requires_grad_()

    query, key, value = columns(0), columns(1) if crossed else None, columns(2)
    inputs = [t for t in (query, key, value) if t is not None]
    results = {}
    for impl in ("triton", "eager"):
        output = softmax_free_attention(
            query, key, value, query[:, :, :4], normalization=normalization, impl=impl
        )
        results[impl] = [output, *torch.autograd.grad(output.square().sum(), inputs)]
    for triton, eager in zip(*results.values(), strict=True):
        assert triton.stride() == query.stride()
        torch.testing.assert_close(triton, eager, rtol=1e-3, atol=1e-4)


def test_mask_of_one_sample_serves_all(device):
    tokens, value = (normal(3, 1, 20, 4, seed=s).to(device, torch.float32) for s in (0, 1))
    mask = (torch.arange(20, device=device) >= 13).expand(3, 20)
    for attend in (
        lambda mask: softmax_free_attention(
            tokens, None, value, tokens[:, :, :5], key_padding_mask=mask, impl="triton"
        ),
        lambda mask: softattn.gaussian_attention(
            tokens, None, value, key_padding_mask=mask, impl="triton"
        ),
    ):
        torch.testing.assert_close(attend(mask), attend(mask.contiguous()), **EXACT)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("crossed", [False, True])
def test_gradient_strides_do_not_matter(device, dtype, crossed):
    query = normal(2, 2, 20, 5, seed=0).to(device, dtype).requires_grad_()
    key = normal(2, 2, 20, 5, seed=1).to(device, dtype).requires_grad_() if crossed else None
    value = normal(2, 2, 20, 5, seed=2).to(device, dtype).requires_grad_()
    landmarks = normal(2, 2, 7, 5, seed=3).to(device, dtype).requires_grad_()
    inputs = [t for t in (query, key, value, landmarks) if t is not None]
    output = softmax_free_attention(
        query, key, value, landmarks, normalization="token", impl="triton"
    )
    weights = normal(*output.shape, seed=4).to(output)
    for grad in (weights, torch.ones_like(weights[..., :1]).expand_as(weights)):
        scattered = grad.mT.contiguous().mT
        expected = torch.autograd.grad(output, inputs, grad.contiguous(), retain_graph=True)
        for g in (grad, scattered):
            for a, b in zip(
                torch.autograd.grad(output, inputs, g, retain_graph=True), expected, strict=True
            ):
                torch.testing.assert_close(a, b, **EXACT)


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@pytest.mark.parametrize(("n", "m"), [(0, 0), (0, 3), (5, 0), (1, 1), (2, 7)])
def test_few_tokens_or_landmarks(device, normalization, n, m):
    tokens = normal(2, 1, n, 3, seed=0).to(device, torch.float32).requires_grad_()
    value = normal(2, 1, n, 4, seed=1).to(device, torch.float32)
    landmarks = normal(2, 1, m, 3, seed=2).to(device, torch.float32)
    output, eager = (
        softmax_free_attention(
            tokens, None, value, landmarks, normalization=normalization, impl=impl
        )
        for impl in ("triton", "eager")
    )
    torch.testing.assert_close(output, eager)
    expected, actual = (torch.autograd.grad(o.sum(), tokens)[0] for o in (eager, output))
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@pytest.mark.parametrize(("d", "d_v", "m"), [(256, 33, 17), (48, 256, 40), (4, 1, 130)])
def test_wide_heads_and_many_landmarks(device, normalization, d, d_v, m):
    # Near enough that the kernel is not 0, whatever d is.
    spread = d**-0.25
    tokens = normal(1, 1, 40, d, seed=0, spread=spread).to(device, torch.float32)
    value = normal(1, 1, 40, d_v, seed=1).to(device, torch.float32)
    landmarks = normal(1, 1, m, d, seed=2, spread=spread).to(device, torch.float32)

    def output_and_gradients(impl, *inputs, pinv=None):
        inputs = [t.detach().requires_grad_() for t in inputs]
        query, value, landmarks = inputs
        output = softmax_free_attention(
            query, None, value, landmarks, normalization=normalization, pinv=pinv, impl=impl
        )
        # Weights that do not pass the output's error on to the gradients.
        weights = normal(*output.shape, seed=5).to(output)
        return output, *torch.autograd.grad((output * weights).sum(), inputs)

    inputs = (tokens, value, landmarks)
    actual = output_and_gradients("triton", *inputs)
    plain = output_and_gradients("eager", *inputs, pinv=by_newton)
    truth = output_and_gradients("eager", *(t.double() for t in inputs))
    for a, t, p in zip(actual, truth, plain, strict=True):
        assert_within_budget(
            a.cpu(), t.detach().cpu(), baseline=p.cpu(), magnitude=100 * t.abs().amax().cpu()
        )


def test_samples_more_than_2_31_elements_apart(device, tmp_path):
    apart = 2**31 + 64

    def far_apart(near, name):
        size = apart + near[0].numel()
        if device.type == "cpu":
            path = str(tmp_path / name)  # of which only what is written takes room
            memory = torch.from_file(path, shared=True, size=size, dtype=near.dtype)
        else:
            memory = torch.empty(size, dtype=near.dtype, device=device)
        return memory.as_strided(near.shape, (apart, *near.stride()[1:])).copy_(near)

    near = [normal(2, 1, 20, 4, seed=seed).to(device, torch.float16) for seed in range(3)]
    far = [far_apart(t, name) for t, name in zip(near, ("x", "v", "g"), strict=True)]

    def output_and_gradients(tokens, value, grad):
        inputs = [tokens.detach().requires_grad_(), value.detach().requires_grad_()]
        landmarks = near[0][:, :, :5].contiguous()
        output = softmax_free_attention(
            inputs[0], None, inputs[1], landmarks, normalization="token", impl="triton"
        )
        return output, *torch.autograd.grad(output, inputs, grad)

    for a, b in zip(output_and_gradients(*far), output_and_gradients(*near), strict=True):
        torch.testing.assert_close(a, b, **EXACT)


# Softmax changes when the queries are moved with the keys.
@pytest.mark.parametrize("normalization", ["none", "landmark", "token"])
def test_common_offset_costs_no_digits_in_float32(device, normalization):
    tokens = normal(1, 1, 40, 8, seed=0).to(device, torch.float32) + 1024
    value = normal(1, 1, 40, 4, seed=1).to(device, torch.float32)
    landmarks = tokens[:, :, ::8].clone()
    far, back = (
        softmax_free_attention(
            tokens - offset, None, value, landmarks - offset, normalization=normalization,
            impl="triton",
        )
        for offset in (0, 1024)
    )  # fmt: skip
    assert (far - back).abs().max() <= 1e-4 * back.abs().max()


@few
@given(problem=triton_problems(), normalize=st.booleans(), data=st.data())
def test_exact_attention_is_within_budget(device, problem, normalize, data):
    assume(problem.keys.shape[2] and problem.query.numel() and problem.value.numel())
    mask = data.draw(padding_masks(problem.keys.shape[0], problem.keys.shape[2]))
    is_self = problem.key is None
    hidden = mask[:, None, :, None] if is_self else mask.all(-1)[:, None, None, None]

    def output_and_gradients(attention, problem, **options):
        inputs = [
            t.detach().requires_grad_()
            for t in (problem.query, problem.key, problem.value)
            if t is not None
        ]
        query, key = inputs[0], None if is_self else inputs[1]
        output = attention(
            query,
            key,
            inputs[-1],
            normalize=normalize,
            scale=problem.scale,
            key_padding_mask=mask.to(query.device),
            **options,
        )
        output = output.masked_fill(hidden.to(query.device), 0)
        weights = normal(*output.shape, seed=5).to(output)
        return output, *torch.autograd.grad((output * weights).sum(), inputs)

    def oracle(query, key, value, **options):
        return reference.gaussian_attention(query, query if key is None else key, value, **options)

    wide = torch.promote_types(problem.query.dtype, torch.float32)
    actual = output_and_gradients(
        softattn.gaussian_attention, problem.map(lambda t: t.to(device)), impl="triton"
    )
    truth = output_and_gradients(oracle, problem.to(torch.float64))
    plain = output_and_gradients(oracle, problem.to(wide))
    assume(all(t.isfinite().all() for t in (*plain, *truth)))
    magnitude = problem.keys.shape[2] * (1 + problem.spread() ** 3)
    for a, t, p in zip(actual, truth, plain, strict=True):
        assert_within_budget(a.cpu(), t, baseline=p.to(a.dtype), magnitude=magnitude)


def test_normalised_row_of_a_query_far_from_all_keys_is_the_nearest_key(device):
    query = torch.tensor([[[[1e3, 0.0]]]], device=device)
    key = torch.tensor([[[[0.0, 0.0], [1.0, 0.0], [0.0, 5.0]]]], device=device)
    value = torch.tensor([[[[1.0], [2.0], [3.0]]]], device=device)
    output = softattn.gaussian_attention(query, key, value, normalize=True, impl="triton")
    torch.testing.assert_close(output.cpu(), torch.tensor([[[[2.0]]]]))


@few
@given(problem=triton_problems())
def test_kernel_and_its_gradient_are_within_budget(device, problem):
    assume(problem.query.numel() and problem.keys.numel())

    def block_and_gradients(kernel, dtype, where, **options):
        q, k = (t.detach().to(where, dtype).requires_grad_() for t in (problem.query, problem.keys))
        block = kernel(q, k, scale=problem.scale, **options)
        weights = normal(*block.shape, seed=5).to(block)
        return block, *torch.autograd.grad((block * weights).sum(), (q, k))

    wide = torch.promote_types(problem.query.dtype, torch.float32)
    actual = block_and_gradients(
        softattn.gaussian_kernel, problem.query.dtype, device, impl="triton"
    )
    truth = block_and_gradients(reference.gaussian_kernel, torch.float64, "cpu")
    plain = block_and_gradients(reference.gaussian_kernel, wide, "cpu")
    magnitude = problem.keys.shape[2] * (1 + problem.spread())
    for a, t, p in zip(actual, truth, plain, strict=True):
        assert_within_budget(a.cpu(), t, baseline=p.to(a.dtype), magnitude=magnitude)


@few
@given(problem=triton_problems())
def test_gram_block_is_symmetric_with_ones_on_its_diagonal(device, problem):
    tokens = problem.query.to(device)
    gram = softattn.gaussian_kernel(tokens, tokens, scale=problem.scale, impl="triton")
    torch.testing.assert_close(gram, gram.mT, **EXACT)
    assert torch.all(gram.diagonal(dim1=-2, dim2=-1) == 1)
