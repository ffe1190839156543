"""Detectors and segmenters in training: resumable to the bit, scored rightly, clear when wrong."""

import json
import math
import re
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from accelerate import Accelerator
from PIL import Image
from support.paths import ROOT
from support.runs import arguments, assert_equal_weights, interrupt_after, launch, metrics
from torchvision import tv_tensors

# Examples are no part of the installation; what is installed goes before what lies here.
from examples.dense import samples
from examples.dense.backbone import backbone_of
from examples.dense.fit import start
from examples.dense.problem import Data
from examples.dense.scenes import scenes
from examples.detection import composites as objects
from examples.detection import predict as detect
from examples.detection import table as detectors
from examples.detection import train as train_detector
from examples.detection.coco import CocoSplit
from examples.detection.problem import Detection, DetectionRecipe, Precision
from examples.segmentation import composites as surfaces
from examples.segmentation import predict as segment
from examples.segmentation import table as segmenters
from examples.segmentation import train as train_segmenter
from examples.segmentation.ade import IGNORED
from examples.segmentation.problem import Overlap, Segmentation, SegmentationRecipe
from examples.training.errors import InputError
from examples.training.loading import Share
from examples.training.loop import Settings
from examples.training.screen import Screen

COUNTS = {"train": 12, "val": 5}
BACKBONE = {"embed_dims": [32, 32, 32, 32], "depths": [1, 1, 1, 1]}
SHORT = {"epochs": 2, "warmup_updates": 2, "lr": 1e-3, "seed": 0}
MASK_RCNN = SHORT | {
    "model": "mask_rcnn_soft_norm_tiny",
    "model_options": {
        "backbone_options": BACKBONE,
        "channels": 16,
        "min_size": 64,
        "max_size": 96,
        "rpn_post_nms_top_n_train": 20,
        "rpn_post_nms_top_n_test": 20,
    },
    "steps": [1],
    "batch_size": 2,
    "accumulate": 2,
}
UPERNET = SHORT | {
    "model": "upernet_soft_norm_tiny",
    "model_options": {
        "backbone_options": BACKBONE | {"drop_path_rate": 0.1},
        "hidden_size": 16,
        "auxiliary_channels": 16,
    },
    "image_size": 64,
    "batch_size": 2,
    "accumulate": 2,
}


@pytest.fixture(scope="session")
def objects_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("images") / "objects"
    objects.write(folder, COUNTS)
    return folder


@pytest.fixture(scope="session")
def surfaces_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("images") / "surfaces"
    surfaces.write(folder, COUNTS)
    return folder


@pytest.fixture
def own_objects(objects_folder, tmp_path) -> Path:
    """Images with objects, to be changed."""
    return Path(shutil.copytree(objects_folder, tmp_path / "objects"))


@pytest.fixture
def own_surfaces(surfaces_folder, tmp_path) -> Path:
    """Images with maps, to be changed."""
    return Path(shutil.copytree(surfaces_folder, tmp_path / "surfaces"))


def run(command, data: Path, out: Path, recipe: dict, *options: str) -> None:
    command.main(arguments(data, out, recipe, "--workers", "0", *options))


def failure(capsys, *given) -> str:
    with pytest.raises(SystemExit) as error:
        run(*given)
    assert error.value.code not in (0, None)
    return f"{error.value.code} {capsys.readouterr().err}"


@pytest.fixture(scope="session")
def trained(objects_folder, surfaces_folder, tmp_path_factory) -> dict[str, Path]:
    """The outputs of two runs, whose samples a worker reads."""
    folder = tmp_path_factory.mktemp("runs")
    for name, command, data, recipe in (
        ("detection", train_detector, objects_folder, MASK_RCNN),
        ("segmentation", train_segmenter, surfaces_folder, UPERNET),
    ):
        command.main(arguments(data, folder / name, recipe, "--workers", "1"))
    return {name: folder / name for name in ("detection", "segmentation")}


@pytest.mark.parametrize("room", ["detection", "segmentation"])
def test_an_interrupted_run_goes_on_to_the_same_bits(
    room, trained, objects_folder, surfaces_folder, tmp_path, monkeypatch, capsys
):
    command, data, recipe = {
        "detection": (train_detector, objects_folder, MASK_RCNN),
        "segmentation": (train_segmenter, surfaces_folder, UPERNET),
    }[room]
    with monkeypatch.context() as patched:
        interrupt_after(4, patched)
        assert failure(capsys, command, data, tmp_path / "run", recipe).startswith("130 ")
    run(command, data, tmp_path / "run", recipe)
    assert "continuing after 2 of 3 updates of epoch 2" in capsys.readouterr().out
    assert metrics(tmp_path / "run") == metrics(trained[room])
    for name in ("last", "best"):
        assert_equal_weights(
            tmp_path / "run" / f"{name}.safetensors", trained[room] / f"{name}.safetensors"
        )


@pytest.mark.parametrize(
    ("room", "scores"),
    [("detection", {"box_ap", "box_ap50", "mask_ap75"}), ("segmentation", {"miou"})],
)
def test_a_run_leaves_scores_curves_and_pictures(trained, room, scores):
    rows = metrics(trained[room])
    assert [row["updates"] for row in rows] == ["3", "6"]
    assert scores < rows[0].keys()
    assert all(0 < float(row["train_loss"]) < 10 for row in rows)
    for name in ("curves.png", "predictions/epoch_001.png", "predictions/epoch_002.png"):
        with Image.open(trained[room] / name) as picture:
            assert picture.size > (200, 200)
    assert list(trained[room].glob("events.out.tfevents.*"))


@pytest.mark.parametrize("room", ["detection", "segmentation"])
def test_evaluation_repeats_the_scores_of_training(
    trained, room, objects_folder, surfaces_folder, capsys
):
    command, data, score = {
        "detection": (train_detector, objects_folder, "box_ap"),
        "segmentation": (train_segmenter, surfaces_folder, "miou"),
    }[room]
    weights = trained[room] / "last.safetensors"
    command.main(f"--data {data} --eval --checkpoint {weights} --workers 0".split())
    last = float(metrics(trained[room])[-1][score])
    assert f"5 images: {score} {last:.4g}" in capsys.readouterr().out
    assert (trained[room] / "evaluation.png").exists()


@pytest.mark.parametrize(
    ("room", "command", "options"),
    [("detection", detect, ["--score", "0"]), ("segmentation", segment, [])],
)
def test_what_a_model_finds_is_drawn_on_any_picture(trained, room, command, options, tmp_path):
    source = tmp_path / "picture.jpg"
    Image.new("RGB", (150, 45), "teal").save(source)
    weights = trained[room] / "best.safetensors"
    command.main([str(source), "--checkpoint", str(weights), "--out", str(tmp_path), *options])
    with Image.open(tmp_path / "picture.png") as drawn, Image.open(source) as plain:
        assert drawn.size == plain.size
        assert drawn.tobytes() != plain.tobytes()


def test_weights_of_another_problem_are_refused(trained):
    with pytest.raises(SystemExit, match="is no model for segmentation"):
        segment.main(["x.png", "--checkpoint", str(trained["detection"] / "best.safetensors")])


def test_two_processes_equal_one(objects_folder, tmp_path):
    """RetinaNet draws nothing at random; the batch norms of a frozen backbone are fixed."""
    options = {key: value for key, value in MASK_RCNN["model_options"].items() if "rpn" not in key}
    recipe = MASK_RCNN | {
        "model": "retinanet_soft_norm_tiny",
        "model_options": options | {"frozen_stages": 4, "score_thresh": 0.0},
    }
    run(train_detector, objects_folder, tmp_path / "one", recipe)
    shared = recipe | {"accumulate": 1}
    given = arguments(objects_folder, tmp_path / "two", shared, "--workers", "0")
    launched = launch("examples.detection.train", *given)
    said, _ = launched.communicate()
    assert launched.returncode == 0, said
    for row, same in zip(metrics(tmp_path / "two"), metrics(tmp_path / "one"), strict=True):
        for name in row:
            assert float(row[name]) == pytest.approx(float(same[name]), rel=1e-4), name


def test_precision_of_perfect_and_of_empty_predictions(objects_folder):
    split = CocoSplit(objects_folder / "annotations" / "instances_val.json", masks=True)
    perfect, empty = Precision(masks=True), Precision(masks=True)
    for index in range(len(split)):
        _, truth = split.read(index)
        perfect.update(truth | {"scores": torch.ones(len(truth["labels"]))}, truth)
        nothing = {name: value[:0] for name, value in truth.items()}
        empty.update(nothing | {"scores": torch.empty(0)}, truth)
    for name in ("box_ap", "box_ap50", "mask_ap", "mask_ap75"):
        assert perfect.compute()[name] == pytest.approx(1)
        assert empty.compute()[name] == 0


def test_overlap_counts_pixels_with_a_class():
    overlap = Overlap(3)
    truth = torch.tensor([[0, 0, 1, 1, IGNORED]], dtype=torch.uint8)
    overlap.update({"labels": torch.tensor([[0, 1, 1, 1, 2]])}, {"labels": truth})
    scores = overlap.compute()
    # IoU 1/2 and 2/3; the third class does not occur.
    assert scores["miou"] == pytest.approx((1 / 2 + 2 / 3) / 2)
    assert scores["pixel_accuracy"] == pytest.approx(3 / 4)


class Upright:
    """Seven upright images and six others."""

    def __len__(self) -> int:
        return 13

    def kind(self, index: int) -> bool:
        return index < 7


def test_a_batch_has_images_of_one_kind():
    batches = samples.order(Upright(), 2, 3, seed=0, epoch=0)
    assert len(batches) == 6
    assert all(len({Upright().kind(index) for index in batch}) == 1 for batch in batches)
    assert len({index for batch in batches for index in batch}) == 12
    assert batches == samples.order(Upright(), 2, 3, seed=0, epoch=0)
    assert batches != samples.order(Upright(), 2, 3, seed=0, epoch=1)
    with pytest.raises(InputError, match=r"13 training images make 2 batches .* needs 3"):
        samples.order(Upright(), 5, 3, seed=0, epoch=0)


def test_every_image_is_one_process_s(objects_folder):
    split = CocoSplit(objects_folder / "annotations" / "instances_val.json", masks=False)
    sums = sorted(
        float(images[0].sum())
        for process in range(2)
        for images, *_ in samples.evaluation_batches(split, Share(process, 2))
    )
    whole = samples.EvaluationSamples(split)
    assert sums == sorted(float(whole[index][0].sum()) for index in range(5))


def test_boxes_fit_the_ink_and_digits_of_validation_are_new():
    seen = {}
    for name in ("train", "val"):
        made = list(scenes(name, 3))
        seen[name] = [scene.image for scene in made]
        for scene in made:
            assert len(scene.digits) == len(scene.masks) == len(scene.boxes)
            assert scene.masks.sum(0).max() == 1
            for mask, (left, top, width, height) in zip(scene.masks, scene.boxes, strict=True):
                assert mask[top : top + height, left : left + width].sum() == mask.sum()
                assert mask[top].any() and mask[:, left + width - 1].any()
    assert all((one != other).any() for one in seen["train"] for other in seen["val"])


def train_once(recipe, problem, accelerator):
    data = Data(Upright(), Upright(), ["0", "1"])
    settings = Settings(Path("unused"))
    return start(problem, recipe, data, 10, settings, accelerator, Screen(False, False))


def test_the_backbone_has_its_own_learning_rate_and_no_decay_of_embeddings():
    recipe = DetectionRecipe(**MASK_RCNN | {"backbone_lr": 0.1, "warmup_updates": 0})
    training = train_once(recipe, Detection(), Accelerator(cpu=True))
    groups = training.optimizer.param_groups
    backbone = backbone_of(training.model)
    group_of = {p: group for group in groups for p in group["params"]}
    assert group_of.keys() == set(training.model.parameters())
    for name, parameter in backbone.named_parameters():
        group = group_of[parameter]
        assert group["lr"] == pytest.approx(1e-4)
        plain = parameter.ndim < 2 or name.endswith(("pos_embed", "cls_token"))
        assert group["weight_decay"] == (0 if plain else recipe.weight_decay)
    assert training.learning_rate == pytest.approx(1e-3)


@pytest.mark.parametrize(
    ("problem", "recipe", "rates"),
    [
        (
            Detection(),
            DetectionRecipe(epochs=3, steps=(1, 2), lr=1.0, warmup_lr=0.1, warmup_updates=2),
            {0: 0.1, 1: 0.55, 2: 1.0, 9: 1.0, 10: 0.1, 19: 0.1, 20: 0.01, 29: 0.01},
        ),
        (
            Segmentation(),
            SegmentationRecipe(epochs=3, lr=1.0, warmup_lr=0.1, warmup_updates=2),
            {0: 0.1, 1: 0.55, 3: 0.9, 15: 0.5, 27: 0.1},
        ),
    ],
)
def test_learning_rates(problem, recipe, rates):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], recipe.lr)
    schedule = problem.schedule(recipe, optimizer, updates_per_epoch=10)
    for update, rate in rates.items():
        schedule.step_update(update)
        assert optimizer.param_groups[0]["lr"] == pytest.approx(rate), update


def test_a_flip_moves_boxes_and_masks_with_the_image():
    masks = torch.zeros(2, 4, 6, dtype=torch.uint8)
    masks[:, 1, :2] = 1
    truth = {
        "boxes": tv_tensors.BoundingBoxes(
            torch.tensor([[0.0, 1, 2, 2]] * 2), format="XYXY", canvas_size=(4, 6)
        ),
        "labels": torch.tensor([3, 4]),
        "iscrowd": torch.tensor([0, 1]),
        "masks": tv_tensors.Mask(masks),
    }
    image = torch.arange(24, dtype=torch.uint8).view(1, 4, 6).expand(3, -1, -1)
    flipped, objects = Detection().augment(DetectionRecipe(horizontal_flip=1), image, truth)
    assert torch.equal((flipped * 255).round(), image.flip(2).float())
    assert objects["boxes"].tolist() == [[4, 1, 6, 2]]
    assert objects["labels"].tolist() == [3]
    assert torch.equal(objects["masks"], masks[:1].flip(2))


def test_a_cut_pads_with_ignored_pixels():
    recipe = SegmentationRecipe(image_size=32, scale=(0.5, 0.5))
    truth = {"labels": tv_tensors.Mask(torch.zeros(40, 40, dtype=torch.uint8))}
    image = torch.full((3, 40, 40), 100, dtype=torch.uint8)
    cut, labelled = Segmentation().augment(recipe, image, truth)
    assert cut.shape == (3, 32, 32)
    assert (labelled["labels"] == 0).sum() == 16 * 16
    assert (labelled["labels"] == IGNORED).sum() == 32 * 32 - 16 * 16


def change(data: Path, split: str, edit) -> None:
    """Edits the instances of a split."""
    file = data / "annotations" / f"instances_{split}.json"
    instances = json.loads(file.read_text())
    edit(instances)
    file.write_text(json.dumps(instances))


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda x: x["annotations"][0].update(category_id=77), "object 1 of .* category 77"),
        (lambda x: x["annotations"][0].update(bbox=[1, 1, 0, 5]), "object 1 of .* without area"),
        (
            lambda x: x["annotations"][0]["segmentation"].update(size=[5, 5]),
            r"object 1 of .* a mask of \[5, 5\]",
        ),
        (lambda x: x["annotations"][0].update(segmentation=[]), "object 1 of .* has no mask"),
        (lambda x: x["images"][0].update(height=7), r"0001\.jpg: 160 × 224 .* for 7 × 224"),
        (lambda x: x["images"][0].update(file_name="gone.jpg"), r"gone\.jpg"),
    ],
)
def test_broken_objects_are_named_or_skipped(own_objects, tmp_path, capsys, edit, message):
    change(own_objects, "train", edit)
    recipe = MASK_RCNN | {"epochs": 1}
    said = failure(capsys, train_detector, own_objects, tmp_path / "run", recipe)
    assert_said(message, said)
    assert "; --skip_broken skips such files" in said
    data = Detection().open(own_objects, "mask_rcnn", Screen(True, True))
    assert_said(f"skipped .*{message}", capsys.readouterr().out)
    assert len(data.train) in (11, 12)


def assert_said(pattern: str, said: str) -> None:
    assert re.search(pattern, said), said


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda x: x.unlink(), r"0001\.png"),
        (lambda x: Image.new("L", (5, 7)).save(x), "7 × 5 pixels, and its image has 160 × 224"),
    ],
)
def test_broken_maps_are_named_or_skipped(own_surfaces, tmp_path, capsys, edit, message):
    edit(own_surfaces / "annotations" / "training" / "0001.png")
    said = failure(capsys, train_segmenter, own_surfaces, tmp_path / "run", UPERNET)
    assert message.replace("\\", "") in said
    data = Segmentation().open(own_surfaces, "upernet", Screen(True, True))
    assert "skipped" in capsys.readouterr().out
    assert len(data.train) == 11


def test_a_batch_without_classes_is_explained(own_surfaces, tmp_path, capsys):
    for path in (own_surfaces / "annotations" / "training").iterdir():
        Image.new("L", (224, 160)).save(path)
    said = failure(capsys, train_segmenter, own_surfaces, tmp_path / "run", UPERNET)
    assert "error: no pixel of 2 crops of a batch has a class" in said


def test_files_that_break_while_they_are_read_are_named_or_skipped(own_surfaces, tmp_path, capsys):
    truncated = own_surfaces / "images" / "training" / "0002.jpg"
    truncated.write_bytes(truncated.read_bytes()[:2000])
    high = own_surfaces / "annotations" / "validation" / "0003.png"
    Image.new("L", (224, 160), 4).save(high)
    recipe = UPERNET | {"epochs": 1}
    said = failure(capsys, train_segmenter, own_surfaces, tmp_path / "run", recipe)
    assert str(truncated) in said and "--skip_broken" in said
    run(train_segmenter, own_surfaces, tmp_path / "run", recipe, "--skip_broken")
    out = capsys.readouterr().out
    assert f"skipped {truncated}" in out
    assert f"skipped {high}: label 4 is above the number of classes, 3" in out
    assert metrics(tmp_path / "run")[0]["unreadable"] == "1"


@pytest.mark.parametrize(
    ("command", "recipe", "expected"),
    [
        (train_detector, MASK_RCNN, r"one file .*instances_train\*\.json, found none"),
        (train_segmenter, UPERNET, r"one file .*objectInfo\*\.txt .* found none"),
    ],
)
def test_a_missing_layout_is_explained(command, recipe, expected, tmp_path, capsys):
    assert_said(expected, failure(capsys, command, tmp_path, tmp_path / "run", recipe))


def test_categories_of_one_split_are_named(own_objects, tmp_path, capsys):
    change(own_objects, "val", lambda x: x["categories"][0].update(name="nought"))
    said = failure(capsys, train_detector, own_objects, tmp_path / "run", MASK_RCNN)
    assert "only one of them has 0 (1), nought (1)" in said


def test_an_unknown_model_is_named(objects_folder, tmp_path, capsys):
    recipe = MASK_RCNN | {"model": "yolo"}
    assert "'yolo'" in failure(capsys, train_detector, objects_folder, tmp_path / "run", recipe)


@pytest.mark.parametrize("numbers", [{"batch_size": 1}, {"lr": 0}, {"horizontal_flip": 2}])
def test_numbers_that_make_no_training_are_refused(numbers):
    with pytest.raises(InputError, match=next(iter(numbers))):
        SegmentationRecipe(**numbers)


@pytest.mark.parametrize(
    ("room", "table", "recipe"),
    [
        ("detection", detectors, DetectionRecipe),
        ("segmentation", segmenters, SegmentationRecipe),
    ],
)
def test_each_published_system_has_a_recipe(room, table, recipe):
    folder = ROOT / "examples" / room / "configs"
    for name in table.PUBLISHED:
        config = yaml.safe_load((folder / f"{name}.yaml").read_text())
        lists = {key: tuple(value) for key, value in config.items() if isinstance(value, list)}
        made = recipe(**config | lists)
        assert made.model == name
        assert made == recipe(model=name, model_options=made.model_options)
        assert math.isinf(made.clip_grad)
