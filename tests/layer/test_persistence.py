"""Layers copied, pickled, saved, and made without memory."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn

from softattn import ConvLandmarks, NewtonPinv, SoftmaxFreeAttention


def layer(device=None):
    return SoftmaxFreeAttention(
        8,
        2,
        landmarks=ConvLandmarks(4, 2, device=device),
        pinv=NewtonPinv("soft", ridge=0.02, iterations=9),
        normalization="token",
        value_conv=3,
        device=device,
    )


def pickled(attention):
    return pickle.loads(pickle.dumps(attention))


def saved_whole(attention):
    buffer = io.BytesIO()
    torch.save(attention, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


@pytest.mark.parametrize("copied", [copy.deepcopy, pickled, saved_whole])
def test_copies_have_the_same_output_and_their_own_weights(copied):
    attention = layer()
    other = copied(attention)
    x = torch.randn(2, 4, 6, 8)
    expected = attention(x)
    assert torch.equal(other(x), expected)
    assert repr(other) == repr(attention)
    nn.init.zeros_(attention.out_proj.weight)
    assert torch.equal(other(x), expected)


def test_state_through_a_file_of_weights_only(tmp_path):
    source, target = layer(), layer()
    torch.save(source.state_dict(), tmp_path / "state.pt")
    target.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    x = torch.randn(2, 4, 6, 8)
    assert torch.equal(target(x), source(x))


def test_state_through_safetensors(tmp_path):
    from safetensors.torch import load_model, save_model

    source, target = layer(), layer()
    save_model(source, tmp_path / "state.safetensors")
    load_model(target, tmp_path / "state.safetensors")
    x = torch.randn(2, 4, 6, 8)
    assert torch.equal(target(x), source(x))


def test_made_on_meta_then_filled():
    source, target = layer(), layer(device="meta")
    assert all(tensor.is_meta for tensor in (*target.parameters(), *target.buffers()))
    target.to_empty(device="cpu").load_state_dict(source.state_dict())
    x = torch.randn(2, 4, 6, 8)
    assert torch.equal(target(x), source(x))


def test_made_on_meta_then_initialised():
    target = layer(device="meta").to_empty(device="cpu")
    for parameter in target.parameters():
        nn.init.constant_(parameter, torch.nan)
    for module in target.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    assert all(parameter.isfinite().all() for parameter in target.parameters())
    assert target(torch.randn(2, 4, 6, 8)).isfinite().all()
