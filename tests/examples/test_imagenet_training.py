"""Training on real images: resumable to the bit, the same on two processes, clear when wrong."""

import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import timm
import torch
import yaml
from accelerate import Accelerator
from PIL import Image
from support.paths import ROOT
from support.runs import arguments, assert_equal_weights, interrupt_after, launch, metrics

# Examples are no part of the installation; what is installed goes before what lies here.
from examples.imagenet import (
    checkpoint,
    compare,
    evaluate,
    fit,
    image_folders,
    images,
    loading,
    train,
)
from examples.imagenet.recipe import Recipe
from examples.models.registry import MODELS
from examples.training.errors import InputError
from examples.training.loading import Share
from examples.training.state import Training

CONFIGS = ROOT / "examples" / "imagenet" / "configs"
PUBLISHED = {  # learning rate, images of each GPU
    "tiny": (1e-3, 128),
    "small": (1e-3, 128),
    "medium": (4e-4, 32),
    "large": (3.3e-4, 32),
    "huge": (2.7e-4, 32),
}
SOFT = {
    "model": "soft_tiny",
    "model_options": {
        "embed_dims": [32, 32, 32, 32],
        "depths": [1, 1, 1, 1],
        "landmarks": "avg",
        "pinv": "minimax",
    },
}
# Without batch norm, whose statistics are of each process.
VIT = {
    "model": "vit_tiny_patch16_224",
    "model_options": {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2},
}
SHORT = {
    "image_size": 32,
    "epochs": 2,
    "warmup_epochs": 1,
    "batch_size": 16,
    "ema_decay": 0.9,
    "lr": 3e-3,
}
PLAIN = {"mixup": 0, "cutmix": 0, "drop_path": 0}


@pytest.fixture(scope="session")
def digits(tmp_path_factory) -> Path:
    """Handwritten digits: 4 classes of 16 for training and 6 for validation."""
    folder = tmp_path_factory.mktemp("images") / "digits"
    image_folders.write("digits", folder)
    for split, count in (("train", 16), ("val", 6)):
        for index, name in enumerate(sorted((folder / split).iterdir())):
            if index >= 4:
                shutil.rmtree(name)
            else:
                for path in sorted(name.iterdir())[count:]:
                    path.unlink()
    return folder


@pytest.fixture
def own_digits(digits, tmp_path) -> Path:
    """The same, to be changed."""
    return Path(shutil.copytree(digits, tmp_path / "digits"))


def run(data: Path, out: Path, recipe: dict, *options: str) -> None:
    train.main(arguments(data, out, recipe, "--workers", "0", *options))


def failure(capsys, *given) -> str:
    with pytest.raises(SystemExit) as error:
        run(*given)
    assert error.value.code not in (0, None)
    return f"{error.value.code} {capsys.readouterr().err}"


@pytest.mark.parametrize("update", [1, 2, 3, 5])
def test_an_interrupted_run_goes_on_to_the_same_bits(
    digits, tmp_path, monkeypatch, capsys, update, uninterrupted
):
    recipe = SOFT | SHORT | {"accumulate": 2, "batch_size": 8}
    with monkeypatch.context() as patched:
        interrupt_after(update, patched)
        assert failure(capsys, digits, tmp_path / "run", recipe).startswith("130 ")
    before = torch.load(tmp_path / "run" / "training.pt", weights_only=True)
    assert before["state"]["training"]["updates"] == update + 1
    run(digits, tmp_path / "run", recipe)
    assert "continuing after" in capsys.readouterr().out
    assert metrics(tmp_path / "run") == metrics(uninterrupted)
    for name in ("last", "best"):
        assert_equal_weights(
            tmp_path / "run" / f"{name}.safetensors", uninterrupted / f"{name}.safetensors"
        )


@pytest.fixture(scope="session")
def uninterrupted(digits, tmp_path_factory) -> Path:
    """A run whose images two workers read."""
    out = tmp_path_factory.mktemp("runs") / "uninterrupted"
    recipe = SOFT | SHORT | {"accumulate": 2, "batch_size": 8}
    train.main(arguments(digits, out, recipe, "--workers", "2"))
    return out


def test_a_run_leaves_metrics_curves_events_and_weights(uninterrupted):
    rows = metrics(uninterrupted)
    assert [row["epoch"] for row in rows] == ["1", "2"]
    assert [row["updates"] for row in rows] == ["4", "8"]
    assert all(0 < float(row["train_loss"]) < 5 for row in rows)
    # Three quarters of the way up at the last update of the warm-up; then along the cosine.
    assert float(rows[0]["lr"]) == pytest.approx(1e-6 + 3 / 4 * (3e-3 - 1e-6))
    cosine = (1 + math.cos(math.pi * 7 / 8)) / 2
    assert float(rows[1]["lr"]) == pytest.approx(5e-5 + (3e-3 - 5e-5) * cosine)
    assert (uninterrupted / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert list(uninterrupted.glob("events.out.tfevents.*"))
    assert not list(uninterrupted.glob(".*partial*"))


def test_every_validation_image_is_one_process_s(digits):
    folder = images.open_split(digits, "val")
    preparation = {"input_size": (3, 32, 32)}
    shares = [
        loading.evaluation_batches(folder, preparation, 5, Share(process, 3))
        for process in range(3)
    ]
    scored = [
        (float(image.sum()), int(label))
        for share in shares
        for batch in share
        for image, label in zip(*batch[:2], strict=True)
    ]
    whole = images.EvaluationImages(folder, loading.evaluation_transform(preparation))
    assert sorted(scored) == sorted((float(image.sum()), label) for image, label, _ in whole)


def test_trainings_are_compared(uninterrupted, tmp_path, monkeypatch, capsys):
    picture = tmp_path / "comparison.png"
    monkeypatch.setattr(
        sys, "argv", ["compare", *2 * [str(uninterrupted)], "--picture", str(picture)]
    )
    compare.main()
    last = float(metrics(uninterrupted)[-1]["top1"])
    assert capsys.readouterr().out.count(f"{last:.1%}") >= 2
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert compare.read(uninterrupted).top1[-1] == last
    runs = [compare.Run(name, 1, [0.5], 1.0) for name in ("resnet18", "soft_tiny", "soft_tiny")]
    folders = [Path("a"), Path("b"), Path("c")]
    names = [run.name for run in compare.told_apart(runs, folders)]
    assert names == ["resnet18", "soft_tiny (b)", "soft_tiny (c)"]
    with pytest.raises(InputError, match=r"metrics\.csv does not exist"):
        compare.read(tmp_path)


def test_evaluation_repeats_the_score_of_training(digits, uninterrupted, capsys):
    best = max(metrics(uninterrupted), key=lambda row: float(row["top1"]))
    weights = uninterrupted / "best.safetensors"
    evaluate.main(["--data", str(digits), "--checkpoint", str(weights), "--workers", "0"])
    said = capsys.readouterr().out
    assert f"top-1 {float(best['top1']):.2%}" in said
    assert f"loss {float(best['val_loss']):.4f} on 24 images" in said
    assert checkpoint.describe(weights).classes == ["0", "1", "2", "3"]


def test_training_learns(digits, tmp_path):
    recipe = SOFT | SHORT | PLAIN | {"epochs": 12, "auto_augment": None, "random_erasing": 0}
    recipe |= {"crop_scale": [0.9, 1.0], "horizontal_flip": 0, "ema_decay": None}
    run(digits, tmp_path / "run", recipe)
    assert float(metrics(tmp_path / "run")[-1]["top1"]) > 0.6  # by chance a quarter


def after_one_update(**recipe) -> tuple[torch.Tensor, Training]:
    """A weight before an update by the whole learning rate, and the training after it."""
    recipe = Recipe(**SOFT, mixup=0, cutmix=0, warmup_lr=1e-3, **recipe)
    torch.manual_seed(0)
    model = timm.create_model("soft_tiny", num_classes=4, **SOFT["model_options"])
    training = fit.start(recipe, model, 4, updates_per_epoch=1, accelerator=Accelerator())
    before = training.model.head.weight.detach().clone()
    training.update([(torch.randn(4, 3, 32, 32), torch.arange(4))])
    return before, training


def test_the_average_moves_by_a_tenth():
    before, training = after_one_update(ema_decay=0.9)
    after = training.model.head.weight
    assert not torch.equal(before, after)
    torch.testing.assert_close(training.evaluated.head.weight, 0.9 * before + 0.1 * after)


def test_gradients_are_clipped():
    # AdamW's step does not know the gradient's size until it is below its eps.
    steps = []
    for clip_grad in (1.0, 1e-12):
        before, training = after_one_update(clip_grad=clip_grad, weight_decay=0)
        steps.append(float((training.model.head.weight.detach() - before).abs().max()))
    assert steps[0] > 5e-4
    assert steps[1] < 1e-6


def test_two_processes_are_stopped_and_go_on_to_the_same_bits(digits, tmp_path):
    recipe = SOFT | SHORT | {"epochs": 12, "batch_size": 8}

    def start(name: str) -> subprocess.Popen:
        return launch(
            "examples.imagenet.train", *arguments(digits, tmp_path / name, recipe, "--workers", "0")
        )

    whole = start("whole")
    assert whole.wait() == 0, whole.stdout.read()
    stopped = start("parts")
    while not (tmp_path / "parts" / "metrics.csv").exists():
        assert stopped.poll() is None, stopped.stdout.read()
        time.sleep(0.01)
    os.killpg(stopped.pid, signal.SIGTERM)
    said, _ = stopped.communicate()
    assert stopped.returncode and "The same command continues from there." in said, said
    going_on = start("parts")
    said, _ = going_on.communicate()
    assert going_on.returncode == 0 and "continuing after" in said, said
    whole.stdout.close()
    assert metrics(tmp_path / "parts") == metrics(tmp_path / "whole")
    assert_equal_weights(
        tmp_path / "parts" / "last.safetensors", tmp_path / "whole" / "last.safetensors"
    )


def test_accumulation_and_processes_share_out_the_same_batch(digits, tmp_path):
    recipe = VIT | SHORT | PLAIN
    run(digits, tmp_path / "whole", recipe)
    run(digits, tmp_path / "parts", recipe | {"batch_size": 8, "accumulate": 2})
    shared = arguments(digits, tmp_path / "shared", recipe | {"batch_size": 8}, "--workers", "0")
    launched = launch("examples.imagenet.train", *shared)
    said, _ = launched.communicate()
    assert launched.returncode == 0, said
    whole = metrics(tmp_path / "whole")
    for other in ("parts", "shared"):
        for row, same in zip(metrics(tmp_path / other), whole, strict=True):
            for name in row:
                assert float(row[name]) == pytest.approx(float(same[name]), rel=1e-4), (other, name)


@pytest.mark.parametrize(
    ("recipe", "options"),
    [
        ({"model": "resnet18"}, ()),
        (SOFT, ("--precision", "bf16", "--channels_last", "true", "--grad_checkpointing", "true")),
        ({"model": "softmax_tiny", "model_options": {"depths": [1, 1, 1, 1]}}, ()),
    ],
)
def test_other_models_and_ways_train(digits, tmp_path, recipe, options):
    short = SHORT | {"epochs": 1, "warmup_epochs": 0}
    run(digits, tmp_path / "run", recipe | short, *options)
    assert float(metrics(tmp_path / "run")[0]["val_loss"]) < 5


def test_a_missing_folder_is_named(tmp_path, capsys):
    said = failure(capsys, tmp_path / "nowhere", tmp_path / "run", SOFT | SHORT)
    assert f"no folder {tmp_path}/nowhere/train" in said


def test_an_empty_class_is_named(own_digits, tmp_path, capsys):
    (own_digits / "val" / "nothing").mkdir()
    said = failure(capsys, own_digits, tmp_path / "run", SOFT | SHORT)
    assert f"{own_digits}/val" in said and "nothing" in said


def test_a_class_of_one_split_is_named(own_digits, tmp_path, capsys):
    shutil.rmtree(own_digits / "val" / "2")
    said = failure(capsys, own_digits, tmp_path / "run", SOFT | SHORT)
    assert re.search(r"only one of them has 2\b", said)


def test_an_unknown_key_is_named(digits, tmp_path, capsys):
    assert "epoch_count" in failure(capsys, digits, tmp_path / "run", SOFT | {"epoch_count": 3})


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_truncated_image_is_named_or_passed_over(own_digits, tmp_path, capsys, split):
    image = sorted((own_digits / split / "1").iterdir())[0]
    image.write_bytes(image.read_bytes()[:60])
    recipe = SOFT | SHORT | {"epochs": 1, "warmup_epochs": 0}
    said = failure(capsys, own_digits, tmp_path / "run", recipe)
    assert str(image) in said and "; --skip_unreadable skips such files" in said
    run(own_digits, tmp_path / "run", recipe, "--skip_unreadable")
    assert str(image) in capsys.readouterr().out
    assert metrics(tmp_path / "run")[0]["unreadable"] == ("1" if split == "train" else "0")
    weights = str(tmp_path / "run" / "last.safetensors")
    evaluate.main(["--data", str(own_digits), "--checkpoint", weights, "--skip_unreadable"])
    said = capsys.readouterr().out
    assert ("on 23 images (1 unreadable)" if split == "val" else "on 24 images,") in said


def test_another_recipe_does_not_go_on(digits, tmp_path, uninterrupted, capsys):
    shutil.copytree(uninterrupted, tmp_path / "run")
    recipe = SOFT | SHORT | {"accumulate": 2, "batch_size": 8, "lr": 1.0}
    assert "lr: 0.003 then, 1.0 now" in failure(capsys, digits, tmp_path / "run", recipe)


def test_an_unknown_model_is_named(digits, tmp_path, capsys):
    assert "'soft_giant'" in failure(capsys, digits, tmp_path / "run", {"model": "soft_giant"})


def test_a_model_without_stochastic_depth_is_told_what_to_leave_out(digits, tmp_path, capsys):
    recipe = SHORT | {"model": "vgg11", "drop_path": 0.1}
    assert "--drop_path 0 leaves" in failure(capsys, digits, tmp_path / "run", recipe)


def test_a_bomb_is_named(digits, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    said = failure(capsys, digits, tmp_path / "run", SOFT | SHORT)
    assert ".png: " in said and "decompression bomb" in said


def test_a_damaged_snapshot_is_named(digits, tmp_path, capsys):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "training.pt").write_bytes(b"junk")
    said = failure(capsys, digits, tmp_path / "run", SOFT | SHORT)
    assert "training.pt cannot be read as a snapshot" in said


def test_one_class_is_none(own_digits, tmp_path, capsys):
    for split in ("train", "val"):
        for name in "123":
            shutil.rmtree(own_digits / split / name)
    assert "two classes" in failure(capsys, own_digits, tmp_path / "run", SOFT | SHORT)


def test_a_long_average_of_a_short_run_is_warned_of(digits, tmp_path, capsys):
    run(digits, tmp_path / "run", SOFT | SHORT | {"ema_decay": 0.99996})
    assert "averages over 25,000 updates and the run has 8" in capsys.readouterr().out


def test_others_may_read_the_weights(uninterrupted):
    modes = {path.stat().st_mode for path in uninterrupted.iterdir() if "tfevents" not in path.name}
    assert len(modes) == 1


def test_too_few_images_are_said(digits, tmp_path, capsys):
    said = failure(capsys, digits, tmp_path / "run", SOFT | SHORT | {"batch_size": 66})
    assert "64 training images are too few" in said


@pytest.mark.parametrize("interrupted", [False, True])
def test_a_diverged_run_keeps_its_last_good_snapshot(
    digits, tmp_path, monkeypatch, capsys, interrupted
):
    update = Training.update

    def poisoned(self, batches):
        if self.epoch == 1:
            next(self.model.parameters()).data.fill_(torch.nan)
            if interrupted:
                os.kill(os.getpid(), signal.SIGTERM)
        update(self, batches)

    monkeypatch.setattr(Training, "update", poisoned)
    assert "the loss is nan" in failure(capsys, digits, tmp_path / "run", SOFT | SHORT)
    kept = torch.load(tmp_path / "run" / "training.pt", weights_only=True)["state"]["training"]
    assert kept["updates"] == 4
    assert all(value.isfinite().all() for value in kept["model"].values())


def test_weights_of_other_classes_are_refused(own_digits, uninterrupted, capsys):
    (own_digits / "val" / "3").rename(own_digits / "val" / "three")
    weights = str(uninterrupted / "best.safetensors")
    with pytest.raises(SystemExit, match="3, three"):
        evaluate.main(["--data", str(own_digits), "--checkpoint", weights])


@pytest.mark.parametrize(
    "numbers",
    [
        {"epochs": 10},
        {"batch_size": 3},
        {"accumulate": 0},
        {"image_size": 0},
        {"lr": -1},
        {"clip_grad": 0},
        {"ema_decay": 1.0},
        {"mixup": -0.1},
        {"model_options": {"num_classes": 7}},
    ],
)
def test_numbers_that_make_no_training_are_refused(numbers):
    with pytest.raises(InputError, match=next(iter(numbers))):
        Recipe(**numbers)


def test_the_published_recipes():
    configs = {path.stem: yaml.safe_load(path.read_text()) for path in CONFIGS.glob("soft*.yaml")}
    assert sorted(configs) == sorted(MODELS)
    for name, config in configs.items():
        recipe = Recipe(**config)
        lr, batch_size = PUBLISHED[name.rpartition("_")[2]]
        assert recipe == Recipe(model=name, lr=lr, batch_size=batch_size)
        assert (recipe.epochs, recipe.warmup_epochs, recipe.clip_grad) == (300, 10, 1.0)
        assert (recipe.min_lr, recipe.weight_decay) == (5e-5, 0.05)
