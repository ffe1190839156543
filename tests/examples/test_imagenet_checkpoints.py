"""The authors' checkpoints: converted, they give the authors' logits; misfits are named."""

import argparse
import re
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file
from support.golden_recipe import OUTPUTS, SHAPES, draw, state_dict
from support.paths import ROOT

# Examples are no part of the installation; what is installed goes before what lies here.
from examples.imagenet import checkpoint
from examples.imagenet.convert import convert

INPUTS = {"224x224": (0, 2, 3, 224, 224), "256x192": (1, 1, 3, 256, 192)}


def official(name: str = "soft_tiny") -> dict[str, torch.Tensor]:
    return state_dict(SHAPES[name])


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "examples.imagenet.convert", *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("name", ["soft_tiny", "soft_norm_tiny"])
def test_converted_checkpoint_gives_the_golden_logits(tmp_path, name):
    source, target = tmp_path / "in.pth", tmp_path / "out.safetensors"
    torch.save(official(name), source)
    ran = run(source, target, "--model", name)
    assert ran.returncode == 0, ran.stderr
    model = checkpoint.load(target).eval()
    for size, seed_and_shape in INPUTS.items():
        with torch.no_grad():
            logits = model(torch.from_numpy(draw(*seed_and_shape)))
        golden = torch.from_numpy(OUTPUTS[f"{name}/{size}"])
        torch.testing.assert_close(logits, golden, rtol=0, atol=1e-3)


@pytest.mark.parametrize(("pinv", "alone"), [(None, False), ("minimax", True)])
def test_only_the_published_inverse_mixes_the_images_of_a_batch(tmp_path, pinv, alone):
    torch.save(official(), tmp_path / "in.pth")
    convert(tmp_path / "in.pth", tmp_path / "out.safetensors", "soft_norm_tiny")
    model = checkpoint.load(tmp_path / "out.safetensors", pinv=pinv).eval()
    image, first, second = torch.from_numpy(draw(0, 3, 3, 64, 64))
    with torch.no_grad():
        beside_first = model(torch.stack([image, first]))[0]
        beside_second = model(torch.stack([image, 10 * second]))[0]
    assert torch.equal(beside_first, beside_second) == alone


def test_a_wrong_file_ends_with_what_is_wrong(tmp_path):
    ran = run(tmp_path / "none.pth", tmp_path / "out.safetensors")
    assert ran.returncode == 1
    assert "none.pth" in ran.stderr
    assert "Traceback" not in ran.stderr


def test_training_checkpoint_tells_its_model_and_its_averaged_weights_count(tmp_path):
    source, target = tmp_path / "in.pth", tmp_path / "out.safetensors"
    averaged = official()
    torch.save(
        {
            "arch": "soft_tiny",
            "args": argparse.Namespace(lr=1e-3),
            "state_dict": {key: torch.zeros_like(value) for key, value in averaged.items()},
            "state_dict_ema": {f"module.{key}": value for key, value in averaged.items()},
        },
        source,
    )
    assert "soft_tiny" in convert(source, target)
    model = checkpoint.load(target)
    torch.testing.assert_close(model.head.weight.data, averaged["head.weight"])


def test_depths_and_classes_are_those_of_the_checkpoint(tmp_path):
    shapes = dict(SHAPES["soft_tiny"])
    for block in range(3, 20):
        shapes |= {
            re.sub(r"^block3\.0", f"block3.{block}", key): shape
            for key, shape in SHAPES["soft_tiny"].items()
            if key.startswith("block3.0.")
        }
    shapes["head.weight"], shapes["head.bias"] = [7, 512], [7]
    torch.save(state_dict(shapes), tmp_path / "in.pth")
    convert(tmp_path / "in.pth", tmp_path / "out.safetensors", "soft_small")
    model = checkpoint.load(tmp_path / "out.safetensors", pinv="minimax")
    assert [len(stage.blocks) for stage in model.stages] == [1, 2, 20, 2]
    assert model.num_classes == 7
    assert model.stages[0].blocks[0].attn.pinv.method == "minimax"


def test_misfits_are_listed(tmp_path):
    weights = official()
    del weights["block2.1.att.mha.W_q.bias"], weights["block4.0.attn.kv.weight"]
    weights["block2.0.att.extra"] = torch.zeros(1)
    weights["pos_embed1"] = torch.zeros(1, 100, 64)
    torch.save(weights, tmp_path / "in.pth")
    with pytest.raises(ValueError, match="does not fit") as error:
        convert(tmp_path / "in.pth", tmp_path / "out.safetensors", "soft_tiny")
    message = str(error.value)
    assert "2 missing" in message and "1 unexpected" in message and "1 of another shape" in message
    assert "block2.1.att.mha.W_q.bias (128,)" in message
    assert "block4.0.attn.kv.weight (1024, 512)" in message
    assert "block2.0.att.extra (1,)" in message
    assert "pos_embed1: expected (1, 3136, 64), got (1, 100, 64)" in message
    assert not (tmp_path / "out.safetensors").exists()


class Unsafe:
    """What a checkpoint may hold that would run on loading."""

    def __reduce__(self):
        return print, ("run",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"weight": torch.zeros(1)}, "give --model"),
        ({"arch": "soft_giant", "state_dict": {"weight": torch.zeros(1)}}, "soft_giant"),
        ({"epoch": 3, "optimizer": {}}, "epoch, optimizer"),
        ([torch.zeros(1)], "list"),
        ({"state_dict": Unsafe()}, "without running its code"),
    ],
)
def test_other_files_are_refused(tmp_path, content, message):
    torch.save(content, tmp_path / "in.pth")
    with pytest.raises(ValueError, match=message):
        convert(tmp_path / "in.pth", tmp_path / "out.safetensors")


def test_checkpoint_of_another_network_is_refused(tmp_path):
    torch.save({"conv1.weight": torch.zeros(64, 3, 7, 7)}, tmp_path / "in.pth")
    with pytest.raises(ValueError, match=r"1 unexpected:\n  conv1\.weight"):
        convert(tmp_path / "in.pth", tmp_path / "out.safetensors", "soft_norm_tiny")


def test_safetensors_of_others_are_refused(tmp_path):
    save_file({"weight": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match=r"examples\.imagenet\.convert"):
        checkpoint.load(tmp_path / "other.safetensors")
