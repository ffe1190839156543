"""The layer with a near field."""

import pytest
import torch
from support.strategies import normal

from softattn import KMeansLandmarks, SoftmaxFreeAttention

ROUNDING = dict(rtol=1e-9, atol=1e-9)


def layer(**options):
    options = {"landmarks": KMeansLandmarks(5), "near_field": 4} | options
    return SoftmaxFreeAttention(8, 2, dtype=torch.float64, **options)


@pytest.mark.parametrize("num_prefix_tokens", [0, 1])
def test_padded_sequences_get_the_output_of_unpadded_ones(num_prefix_tokens):
    attention, x = layer(), normal(2, 21, 8, seed=0)
    padding = torch.zeros(2, 21, dtype=torch.bool)
    padding[0, 3::2] = True
    output = attention(x, key_padding_mask=padding, num_prefix_tokens=num_prefix_tokens)
    for sample, mask in enumerate(padding):
        alone = attention(x[sample : sample + 1, ~mask], num_prefix_tokens=num_prefix_tokens)
        torch.testing.assert_close(output[sample, ~mask], alone[0], **ROUNDING)
        assert torch.all(output[sample, mask] == 0)


def test_packed_sequences_get_the_output_of_each_alone():
    attention, x = layer(), normal(40, 8, seed=0)
    output = attention(x, cu_seqlens=torch.tensor([0, 3, 3, 40]))
    torch.testing.assert_close(output[:3], attention(x[None, :3])[0], **ROUNDING)
    torch.testing.assert_close(output[3:], attention(x[None, 3:])[0], **ROUNDING)


def test_factors_are_those_of_the_output():
    attention, x = layer(), normal(2, 21, 8, seed=0)
    padding = torch.zeros(2, 21, dtype=torch.bool)
    padding[1, 4:9] = True
    rows = attention.attention_factors(x, key_padding_mask=padding).rows(range(21))
    values = attention.v_proj(x).unflatten(-1, (2, -1)).transpose(1, 2)
    attended = (rows @ values).transpose(1, 2).flatten(2)
    expected = attention(x, key_padding_mask=padding)[~padding]
    torch.testing.assert_close(attention.out_proj(attended)[~padding], expected, **ROUNDING)


def test_near_field_reaches_the_operator():
    x = normal(1, 21, 8, seed=0)
    attention, without = layer(), layer(near_field=1)
    without.load_state_dict(attention.state_dict())
    assert (attention(x) - without(x)).abs().max() > 1e-6
    assert "near_field=4" in repr(attention)


def test_what_is_refused():
    with pytest.raises(ValueError, match="normalization='softmax'; use near_field=1"):
        layer(normalization="softmax")
    with pytest.raises(ValueError, match="got cross-attention; use near_field=1"):
        layer()(normal(1, 5, 8, seed=0), normal(1, 6, 8, seed=1))
