"""``normalization="softmax"``: its exact operator is softmax attention."""

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from support.strategies import normal, padding_masks, seeds
from torch.nn.functional import scaled_dot_product_attention

from softattn import reference, softmax_free_attention, softmax_log_weight_range

pytestmark = pytest.mark.usefixtures("tiles")


def attend(query, key, value, landmarks, **options):
    return softmax_free_attention(query, key, value, landmarks, normalization="softmax", **options)


@given(
    seed=seeds,
    n=st.integers(1, 10),
    crossed=st.booleans(),
    spread=st.sampled_from([0.5, 1.0, 1.5]),
    scale=st.sampled_from([None, 0.3]),
    data=st.data(),
)
def test_with_every_token_a_landmark_it_is_softmax_attention(seed, n, crossed, spread, scale, data):
    key = normal(2, 2, n, 6, seed=seed, spread=spread)
    query = normal(2, 2, 7, 6, seed=seed + 1, spread=spread) + 1 if crossed else key
    value = normal(2, 2, n, 3, seed=seed + 2)
    padding = data.draw(padding_masks(2, n))
    assume(not padding.all(-1).any())
    assume(torch.linalg.cond(reference.gaussian_kernel(key, key, scale)).max() < 1e5)
    other = key if crossed else None
    log_weights = softmax_log_weight_range(query, other, scale=scale, key_padding_mask=padding)
    assume(log_weights.max() < 8)
    output = attend(
        query,
        other,
        value,
        key.clone(),
        pinv=torch.linalg.inv,
        scale=scale,
        key_padding_mask=padding,
    )
    exact = scaled_dot_product_attention(query, key, value, ~padding[:, None, None, :], scale=scale)
    if not crossed:
        exact = exact.masked_fill(padding[:, None, :, None], 0)
    torch.testing.assert_close(output, exact, rtol=1e-8, atol=1e-9)


@given(seed=seeds, spread=st.sampled_from([0.5, 1.0, 3.0]))
def test_moving_the_keys_of_cross_attention_changes_nothing(seed, spread):
    query = normal(1, 2, 6, 4, seed=seed, spread=spread)
    key, landmarks = (normal(1, 2, n, 4, seed=seed + n, spread=spread) for n in (9, 3))
    value, step = normal(1, 2, 9, 3, seed=seed + 1), normal(1, 2, 1, 4, seed=seed + 2)
    torch.testing.assert_close(
        attend(query, key + step, value, landmarks + step),
        attend(query, key, value, landmarks),
        rtol=1e-9,
        atol=1e-9,
    )


@given(seed=seeds)
def test_with_keys_of_one_norm_it_is_token(seed):
    tokens = torch.nn.functional.normalize(normal(2, 2, 9, 4, seed=seed), dim=-1) * 2
    value, landmarks = normal(2, 2, 9, 3, seed=seed + 1), normal(2, 2, 3, 4, seed=seed + 2)
    torch.testing.assert_close(
        attend(tokens, None, value, landmarks),
        softmax_free_attention(tokens, None, value, landmarks, normalization="token"),
        rtol=1e-9,
        atol=1e-9,
    )


@given(seed=seeds, spread=st.sampled_from([3.0, 10.0, 100.0]), crossed=st.booleans())
def test_weights_of_any_range_stay_finite(seed, spread, crossed):
    key = normal(1, 2, 9, 4, seed=seed, spread=spread).requires_grad_()
    query = normal(1, 2, 6, 4, seed=seed + 1, spread=spread) if crossed else key
    landmarks = key[:, :, :3].clone()
    output = attend(query, key if crossed else None, torch.ones(1, 2, 9, 3).double(), landmarks)
    assert ((output >= -1e-9) & (output <= 1 + 1e-9)).all()
    values = normal(1, 2, 9, 3, seed=seed + 2)
    output = attend(query, key if crossed else None, values, landmarks)
    assert output.isfinite().all()
    assert torch.autograd.grad(output.sum(), key)[0].isfinite().all()


def test_range_is_that_of_the_logarithms():
    key = torch.tensor([[0.0, 0.0], [3.0, 4.0], [1.0, 0.0]], dtype=torch.float64)[None, None]
    assert softmax_log_weight_range(key, scale=0.5).item() == pytest.approx(25 / 4)
    padding = torch.tensor([[False, True, False]])
    found = softmax_log_weight_range(key, scale=0.5, key_padding_mask=padding)
    assert found.item() == pytest.approx(1 / 4)
    query = torch.zeros(1, 1, 4, 2, dtype=torch.float64)
    moved = (key - key.mean(2, keepdim=True)).square().sum(-1) / 4
    expected = (moved.max() - moved.min()).item()
    assert softmax_log_weight_range(query, key, scale=0.5).item() == pytest.approx(expected)
