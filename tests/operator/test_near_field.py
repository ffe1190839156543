"""Near fields: what the laws of ``test_attention`` do not say of them."""

from dataclasses import replace

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from support.strategies import normal, problems, seeds
from torch.autograd import gradcheck, gradgradcheck

from softattn import (
    AvgPoolLandmarks,
    attention_factors,
    explain_impl,
    reference,
    softmax_free_attention,
)
from softattn.backends.backend import EAGER
from softattn.backends.content_order import content_order
from softattn.common.padding import inverse_permutation
from softattn.common.quotient import FLOOR
from softattn.eager.near_field import NearField

pytestmark = pytest.mark.usefixtures("tiles")

ROUNDING = dict(rtol=1e-9, atol=1e-9)


@given(problem=problems(normalizations=("token",), cross=st.just(False)), more=st.integers(0, 3))
def test_one_run_of_all_tokens_is_the_exact_operator(problem, more):
    n = problem.query.shape[2]
    assume(n)
    problem = replace(problem, near_field=n + more)
    exact = reference.gaussian_attention(
        problem.query, problem.query, problem.value, normalize=True, scale=problem.scale
    )
    torch.testing.assert_close(problem.solve(softmax_free_attention), exact, **ROUNDING)


def test_run_of_one_token_is_the_diagonal():
    tokens, landmarks, value = (normal(2, 1, n, 3, seed=seed) for seed, n in enumerate((7, 4, 7)))
    p = reference.gaussian_kernel(tokens, landmarks)
    middle = torch.linalg.inv(reference.gaussian_kernel(landmarks, landmarks) + 0.01 * torch.eye(4))
    ones = torch.ones_like(value[..., :1])
    near = NearField(tokens, p, p @ middle, torch.cat([value, ones], -1), 1, 3**-0.5)
    diagonal = 1 - ((p @ middle) * p).sum(-1, keepdim=True)
    torch.testing.assert_close(near.terms(), diagonal * torch.cat([value, ones, ones], -1))


@pytest.mark.parametrize("near_field", [1, 16])
def test_twins_share_their_weight_in_a_near_field(near_field):
    n = 2000
    tokens = 6 * torch.randn(1, 1, n, 16)
    tokens[:, :, 1500] = tokens[:, :, 300]
    landmarks = AvgPoolLandmarks(16)(tokens)
    # The twins must not come into two runs.
    places = inverse_permutation(content_order(EAGER, tokens, landmarks))[0, 0]
    assert places[300] // 16 == places[1500] // 16
    row = attention_factors(tokens, None, landmarks, near_field=near_field).rows([300])[0, 0, 0]
    twins = row[[300, 1500]]
    if near_field == 1:
        assert twins[0] > 0.99
        assert twins[1].abs() < 0.01
    else:
        # The other tokens keep their small weights.
        torch.testing.assert_close(twins, torch.full((2,), 0.5), rtol=0, atol=0.01)


@given(problem=problems(normalizations=("token",), cross=st.just(False)), seed=seeds)
def test_order_is_by_cell_and_then_along_one_direction(problem, seed):
    assume(problem.query.numel())
    tokens, landmarks = problem.query, problem.landmarks
    order = content_order(EAGER, tokens, landmarks)
    padding = torch.rand(*tokens.shape[::2], generator=torch.Generator().manual_seed(seed)) < 0.3
    padded = content_order(
        EAGER, tokens.masked_fill(padding[:, None, :, None], torch.nan), landmarks, padding
    )
    for b in range(tokens.shape[0]):
        for h in range(tokens.shape[1]):
            points = landmarks[b, h]
            assert sorted(order[b, h].tolist()) == list(range(tokens.shape[2]))
            cells = torch.cdist(tokens[b, h], points).argmin(-1)[order[b, h]]
            changes = int((cells[1:] != cells[:-1]).sum())
            assert changes == len(cells.unique()) - 1, "a cell comes twice"
            kept = [i for i in order[b, h].tolist() if not padding[b, i]]
            assert padded[b, h, : len(kept)].tolist() == kept


def test_order_between_two_landmarks_does_not_depend_on_padded_ones():
    # Both are as far from their mean, which is a sum of more terms with padded ones.
    tokens, landmarks = normal(50, 2, 7, 2, seed=0), normal(50, 2, 5, 2, seed=1)
    mask = torch.tensor([True, True, True, False, False]).expand(50, 5)
    landmarks[:, :, :3] = landmarks[:, :, 3:].mean(2, keepdim=True)
    order = content_order(EAGER, tokens, landmarks, landmark_padding_mask=mask)
    assert torch.equal(order, content_order(EAGER, tokens, landmarks[:, :, 3:]))


def test_tokens_of_a_cell_follow_the_main_direction():
    landmarks = torch.tensor(
        [[0.0, 0.0], [10.0, 3.0], [30.0, 9.0], [20.0, 6.0]], dtype=torch.float64
    )
    tokens = landmarks.repeat_interleave(5, 0) + normal(20, 2, seed=0)
    order = content_order(EAGER, tokens[None, None], landmarks[None, None])[0, 0]
    direction = torch.tensor([10.0, 3.0], dtype=torch.float64)
    direction /= direction.norm()
    cells = torch.cdist(tokens, landmarks).argmin(-1)
    if cells[order[0]] == 2:
        order = order.flip(0)  # the direction has no sign of its own
    assert cells[order].unique_consecutive().tolist() == [0, 1, 3, 2]
    places = (tokens @ direction)[order]
    for cell in range(4):
        of_cell = places[cells[order] == cell]
        assert torch.equal(of_cell, of_cell.sort().values)


@pytest.mark.parametrize("odd", [torch.nan, torch.inf, -torch.inf, 3e38])
def test_order_of_tokens_does_not_depend_on_odd_ones(odd):
    tokens, landmarks = normal(1, 1, 40, 3, seed=0).float(), normal(1, 1, 4, 3, seed=1).float()
    tokens[:, :, ::4, 1] = odd
    order = content_order(EAGER, tokens, landmarks)[0, 0]
    assert sorted(order.tolist()) == list(range(40))
    cells = EAGER.nearest_landmarks(tokens, landmarks, None, None)[0, 0, order]
    assert len(cells.unique_consecutive()) == len(cells.unique()), "a cell comes twice"
    usual = torch.arange(40)[torch.arange(40) % 4 > 0]
    alone = usual[content_order(EAGER, tokens[:, :, usual], landmarks)[0, 0]]
    assert torch.equal(order[order % 4 > 0], alone)


@pytest.mark.parametrize("content", [torch.nan, torch.inf, 1e30])
def test_content_of_padding_does_not_change_the_order(content):
    tokens, landmarks = normal(1, 2, 40, 3, seed=0), normal(1, 2, 4, 3, seed=1)
    padding = torch.arange(40)[None] % 3 == 1
    expected = content_order(EAGER, tokens, landmarks, padding)
    tokens = tokens.masked_fill(padding[:, None, :, None], content)
    order = content_order(EAGER, tokens, landmarks, padding)
    assert torch.equal(order, expected)
    assert padding[0, order[..., -13:]].all()


@pytest.mark.parametrize("direction", [[3.0, 1.0], [0.0, 0.0]])
def test_order_far_from_the_origin(direction):
    line = torch.tensor([0.0, 1.0, 3.0, 4.0, 6.0, 7.0])[:, None] * torch.tensor(direction)
    # In float32 the mean of six such numbers is not the number.
    landmarks = (line + 10_000.1)[None, None]
    tokens = landmarks.repeat_interleave(500, 2) + normal(3000, 2, seed=0).float()
    order = content_order(EAGER, tokens, landmarks)[0, 0]
    # Landmarks in one point have no direction; the order is then by the sum of the features.
    along = torch.tensor(direction if any(direction) else [1.0, 1.0], dtype=torch.float64)
    places = ((tokens.double() - 10_000) @ along)[0, 0, order] / along.norm()
    cells = torch.cdist(tokens.double(), landmarks.double()).argmin(-1)[0, 0, order]
    steps = places.diff()[cells[1:] == cells[:-1]]
    assert len(steps) >= 2994
    assert (steps > -3e-4).all()


@pytest.mark.parametrize("m", [2047, 2048])
def test_order_by_many_landmarks(m):
    # The last landmarks whose keys fit in 32 bits, and one more.
    landmarks = normal(1, 1, m, 1, seed=0)
    padding = torch.arange(m)[None] % 3 == 1
    order = content_order(EAGER, landmarks, landmarks, padding)
    places = landmarks[..., 0].masked_fill(padding, torch.inf)
    assert torch.equal(order, places.argsort(stable=True))


def test_equal_tokens_keep_their_order():
    tokens, landmarks = normal(1, 1, 1, 3, seed=0), normal(1, 1, 4, 3, seed=1)
    order = content_order(EAGER, tokens.expand(-1, -1, 300, -1), landmarks)
    assert torch.equal(order[0, 0], torch.arange(300))


def inverse_that_is_wrong(gram):
    """Not symmetric, and so large that entries of R are clamped and denominators at the floor."""
    m = gram.shape[-1]
    return 5 * torch.linalg.inv(gram + 0.1 * torch.eye(m)) @ normal(m, m, seed=5)


@pytest.mark.parametrize(("pinv", "masked"), [(None, True), (inverse_that_is_wrong, False)])
def test_gradcheck(pinv, masked):
    tokens, value, landmarks = (
        normal(2, 1, n, d, seed=seed).requires_grad_()
        for seed, (n, d) in enumerate([(7, 3), (7, 2), (3, 3)])
    )
    masks = {}
    if masked:
        masks["key_padding_mask"] = torch.arange(7) >= torch.tensor([[5], [7]])
        masks["landmark_padding_mask"] = torch.arange(3) >= torch.tensor([[3], [2]])

    def attend(tokens, value, landmarks):
        return softmax_free_attention(
            tokens, None, value, landmarks, near_field=3, pinv=pinv, **masks
        )

    assert gradcheck(attend, (tokens, value, landmarks))
    # Along random directions, for all of them would take most of the time of this file.
    assert gradgradcheck(attend, (tokens, value, landmarks), fast_mode=True)


def test_wrong_inverse_meets_the_bounds_and_the_floor():
    tokens, landmarks = normal(2, 1, 7, 3, seed=0), normal(2, 1, 3, 3, seed=2)
    p = reference.gaussian_kernel(tokens, landmarks)
    middle = inverse_that_is_wrong(reference.gaussian_kernel(landmarks, landmarks))
    near = NearField(tokens, p, p @ middle, torch.ones(2, 1, 7, 1).double(), 7, 3**-0.5)
    for bound in (-1, 0, 1):
        assert (near.remainder == bound).any()
    z = middle @ p.sum(2).unsqueeze(-1)
    denominator, terms = (p @ torch.cat([z, z.abs()], -1) + near.sums()).unbind(-1)
    assert (denominator.abs() < FLOOR * terms).any()


def test_the_output_can_be_changed_in_place():
    tokens, landmarks = normal(1, 2, 9, 3, seed=0).requires_grad_(), normal(1, 2, 4, 3, seed=1)
    output = softmax_free_attention(tokens, None, tokens, landmarks, near_field=4)
    (expected,) = torch.autograd.grad((2 * output).sum(), tokens, retain_graph=True)
    (actual,) = torch.autograd.grad(output.mul_(2).sum(), tokens)
    torch.testing.assert_close(actual, expected)


def test_runs_far_from_the_landmarks_keep_their_digits():
    tokens, value = normal(1, 1, 12, 3, seed=0).float(), normal(1, 1, 12, 2, seed=1).float()
    landmarks = 1000 + normal(1, 1, 4, 3, seed=2).float()
    output = softmax_free_attention(tokens, None, value, landmarks, near_field=12)
    exact = reference.gaussian_attention(
        tokens.double(), tokens.double(), value.double(), normalize=True
    )
    # The features of tokens are rounded once, at their distance from the landmarks.
    torch.testing.assert_close(output.double(), exact, rtol=0, atol=1000 * 2**-24)


@pytest.mark.parametrize("options", [{"near_field": 4}, {"masked": True}])
def test_the_default_device_does_not_matter(options):
    tokens, landmarks = normal(1, 2, 9, 3, seed=0), normal(1, 2, 4, 3, seed=1)
    options = dict(options)
    if options.pop("masked", False):
        options["landmark_padding_mask"] = torch.tensor([[False, False, True, False]])
    expected = softmax_free_attention(tokens, None, tokens, landmarks, **options)
    with torch.device("meta"):
        output = softmax_free_attention(tokens, None, tokens, landmarks, **options)
    assert torch.equal(output, expected)


def test_vmap_over_the_batch():
    tokens, value, landmarks = (
        normal(3, 2, n, d, seed=seed) for seed, (n, d) in enumerate([(9, 3), (9, 2), (4, 3)])
    )

    def attend(*inputs):
        tokens, value, landmarks = (each[None] for each in inputs)
        return softmax_free_attention(tokens, None, value, landmarks, near_field=4)[0]

    def gradient(*inputs):
        return torch.func.grad(lambda *inputs: attend(*inputs).square().sum())(*inputs)

    for function in (attend, gradient):
        together = torch.vmap(function)(tokens, value, landmarks)
        alone = [function(*inputs) for inputs in zip(tokens, value, landmarks, strict=True)]
        torch.testing.assert_close(together, torch.stack(alone), **ROUNDING)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"near_field": 0}, ValueError, "near_field must be at least 1, got 0"),
        ({"near_field": 2.0}, TypeError, r"near_field must be an int, got 2\.0"),
        (
            {"near_field": 4, "normalization": "softmax"},
            ValueError,
            "near_field=4 .* self-attention with normalization='token', .* got "
            "normalization='softmax'; use near_field=1",
        ),
        ({"near_field": 4, "key": normal(1, 1, 5, 3, seed=1)}, ValueError, "got cross-attention"),
    ],
)
def test_where_there_is_no_near_field(options, error, message):
    tokens = normal(1, 1, 5, 3, seed=0)
    options = {"key": None} | options
    with pytest.raises(error, match=message):
        softmax_free_attention(tokens, value=tokens, landmarks=tokens[:, :, :2], **options)


@pytest.mark.parametrize(
    ("features", "landmarks", "dtype", "reason"),
    [
        (3, 65, torch.float32, "there are 65 landmarks, the kernels of near fields take 64"),
        (64, 129, torch.float16, "there are 129 landmarks, the kernels of near fields take 128"),
        (65, 65, torch.float16, "there are 65 landmarks, the kernels of near fields take 64"),
        (65, 4, torch.float32, "a head has 65 features, the kernels of near fields take 64"),
        (129, 4, torch.bfloat16, "a head has 129 features, the kernels of near fields take 128"),
    ],
)
def test_sizes_without_a_kernel(monkeypatch, features, landmarks, dtype, reason):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    tokens = torch.zeros(1, 1, 140, features, dtype=dtype)
    chosen = tokens[:, :, :landmarks]
    assert explain_impl(tokens, tokens, chosen, "triton").name == "triton"
    choice = explain_impl(tokens, tokens, chosen, "triton", near_field=4)
    assert choice == ("eager", f"{reason} at most")
    with pytest.raises(ValueError, match=f"{reason} at most; use impl='eager'"):
        softmax_free_attention(tokens, None, tokens, chosen, near_field=4, impl="triton")
