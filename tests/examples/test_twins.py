"""The softmax twins: as many parameters, softmax in every block, measured beside SOFT."""

import json
import sys

import pytest
import timm
import torch
from torch.nn import functional as F

# Examples are no part of the installation; what is installed goes before what lies here.
from examples.imagenet import throughput
from examples.imagenet.table import count_parameters
from examples.models.registry import SIZES
from examples.models.twins import SoftmaxAttention
from softattn import SoftmaxFreeAttention

SMALL = {"embed_dims": (32, 32, 64, 64), "depths": (1, 1, 1, 1), "num_classes": 5}
ON_CPU = throughput.Work(torch.device("cpu"), batch_size=1, training=True)


@pytest.mark.parametrize("size", SIZES)
def test_twins_have_as_many_parameters(size):
    ours, twin = count_parameters(f"soft_{size}"), count_parameters(f"softmax_{size}")
    assert twin == pytest.approx(ours, rel=0.01)


def test_a_twin_has_no_softmax_free_attention():
    twin = timm.create_model("softmax_tiny", **SMALL).eval()
    assert sum(isinstance(module, SoftmaxAttention) for module in twin.modules()) == 3
    assert not any(isinstance(module, SoftmaxFreeAttention) for module in twin.modules())
    assert twin(torch.randn(2, 3, 50, 70)).shape == (2, 5)
    backbone = timm.create_model("softmax_tiny", features_only=True)
    assert len(backbone(torch.randn(1, 3, 64, 64))) == 4


def test_attention_of_a_twin_is_softmax_and_the_convolution_of_values():
    torch.manual_seed(0)
    attention = SoftmaxAttention(8, 2, 3)
    x = torch.randn(1, 4, 5, 8)
    query, key, value = attention.qkv_proj(x.reshape(1, 20, 8)).chunk(3, -1)
    heads = []
    for head in range(2):
        own = slice(4 * head, 4 * head + 4)
        weights = (query[..., own] @ key[..., own].mT / 2).softmax(-1)
        maps = value[..., own].reshape(4, 5, 4).permute(2, 0, 1)[:, None]
        local = F.conv2d(maps, attention.value_conv.weight[head : head + 1], padding=1)
        heads.append(weights @ value[..., own] + local[:, 0].permute(1, 2, 0).reshape(1, 20, 4))
    expected = attention.out_proj(torch.cat(heads, -1)).reshape(x.shape)
    torch.testing.assert_close(attention(x), expected)


def test_options_of_softmax_free_attention_are_refused():
    with pytest.raises(TypeError, match="pinv"):
        timm.create_model("softmax_tiny", pinv="minimax", **SMALL)


def test_both_are_measured_in_turns(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(throughput, "LEAST_SECONDS", 0)
    monkeypatch.setattr(throughput, "ROUNDS", 2)
    created = []
    create_model = timm.create_model

    def create(name, **options):
        created.append(name)
        return create_model(name, **SMALL, **options)

    monkeypatch.setattr(timm, "create_model", create)
    out = tmp_path / "throughput.json"
    command = (
        "throughput --models soft_norm_tiny --sizes 32 --batch_size 2 --training --landmarks avg"
    )
    monkeypatch.setattr(sys, "argv", [*command.split(), "--out", str(out)])
    throughput.main()
    assert created == ["soft_norm_tiny", "softmax_tiny"] * 2
    written = json.loads(out.read_text())
    assert (written["batch_size"], written["pass"]) == (2, "forward and backward")
    speeds = [row["images_per_second"] for row in written["measurements"]]
    assert f"{speeds[0] / speeds[1]:.2f}×" in capsys.readouterr().out


def test_what_does_not_fit_in_memory_is_said(monkeypatch):
    def create_model(name, **options):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(timm, "create_model", create_model)
    ours, twin = throughput.measure(["soft_tiny"], {}, [32], ON_CPU)
    assert ours.images_per_second is None and twin.images_per_second is None
    columns = throughput.table([ours, twin], "").columns
    assert [list(column.cells) for column in columns[2:5]] == [["out of memory"]] * 2 + [[""]]
