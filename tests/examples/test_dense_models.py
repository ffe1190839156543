"""The ten published detectors and segmenters, by name: sizes, errors, weights and frozen stages."""

import pytest
import timm
import torch
from safetensors.torch import save_file

# Examples are no part of the installation; what is installed goes before what lies here.
from examples import detection, segmentation
from examples.dense.backbone import backbone_of, load_classifier
from examples.dense.table import count_parameters
from examples.detection import table as detectors
from examples.segmentation import table as segmenters
from examples.segmentation.models import UperNet
from examples.training.errors import InputError

SMALL = {"embed_dims": (32, 32, 64, 64), "depths": (1, 1, 1, 1)}


def detector(name: str = "mask_rcnn_soft_norm_tiny", **options) -> torch.nn.Module:
    """A small one, of two classes; always the same weights."""
    torch.manual_seed(0)
    options = {
        "num_classes": 2,
        "backbone_options": SMALL,
        "min_size": 64,
        "max_size": 96,
    } | options
    return detection.create_model(name, **options)


def segmenter(name: str = "upernet_soft_norm_tiny", **options) -> torch.nn.Module:
    """A small one, of three classes; always the same weights."""
    torch.manual_seed(0)
    options = {"num_classes": 3, "backbone_options": SMALL, "hidden_size": 16} | options
    return segmentation.create_model(name, auxiliary_channels=16, **options)


def target(first_label: int = 1) -> dict[str, torch.Tensor]:
    """One object in an image of 64 × 80 pixels."""
    masks = torch.zeros(1, 64, 80, dtype=torch.uint8)
    masks[:, 10:40, 20:50] = 1
    return {
        "boxes": torch.tensor([[20.0, 10.0, 50.0, 40.0]]),
        "labels": torch.tensor([first_label]),
        "masks": masks,
    }


@pytest.mark.parametrize("room", [detection, segmentation])
def test_parameters_are_those_of_the_papers(room):
    published_numbers = {detection: detectors, segmentation: segmenters}[room].PUBLISHED

    def count(name: str, published: bool = False) -> float:
        return count_parameters(room.create_model, name, published) / 1e6

    for name, (published, *_) in published_numbers.items():
        counted = count(name, published=True)
        assert counted == pytest.approx(published, rel=0.02), name
        # 49 means have no parameters, and a twin has as many matrices.
        default = count(name)
        assert counted * 0.99 < default < counted, name
        twin = count(name.replace("soft_norm", "softmax"))
        assert twin == pytest.approx(default, rel=1e-3), name


@pytest.mark.parametrize("head", ["retinanet", "mask_rcnn"])
@pytest.mark.parametrize("backbone", ["soft_norm_tiny", "softmax_tiny"])
def test_detectors_train_and_detect(head, backbone):
    model = detector(f"{head}_{backbone}")
    empty = target()
    empty = {key: value[:0] for key, value in empty.items()}
    images = [torch.rand(3, 64, 80), torch.rand(3, 50, 61)]
    losses = model(images, [target(model.first_label), empty])
    sum(losses.values()).backward()
    assert all(loss.isfinite() for loss in losses.values())
    assert all(parameter.grad is not None for parameter in model.parameters())
    with torch.no_grad():
        found = model.eval()([torch.rand(3, 1, 1), torch.rand(3, 45, 7)])
    assert all({"boxes", "scores", "labels"} <= detected.keys() for detected in found)


@pytest.mark.parametrize(
    ("head", "threshold"), [("retinanet", "score_thresh"), ("mask_rcnn", "box_score_thresh")]
)
def test_borders_of_boxes_are_not_rounded_in_bfloat16(head, threshold):
    sizes = {"min_size": 256, "max_size": 256}
    model = detector(f"{head}_soft_norm_tiny", **sizes, **{threshold: 0}).eval()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        (found,) = model([torch.rand(3, 256, 256)])
    assert {value.dtype for name, value in found.items() if name != "labels"} == {torch.float32}
    # From 128 on, bfloat16 has whole numbers only.
    far = found["boxes"][found["boxes"] > 128]
    assert (far.frac() != 0).float().mean() > 0.5


def test_a_head_of_retinanet_can_have_norms():
    model = detector("retinanet_soft_norm_tiny", head_norm=True, channels=64)
    losses = model([torch.rand(3, 64, 80)], [target(0)])
    sum(losses.values()).backward()
    (norm, *_) = [part for part in model.head.modules() if isinstance(part, torch.nn.GroupNorm)]
    assert norm.weight.grad.abs().max() > 0
    with pytest.raises(TypeError, match="head_norm"):
        detector("mask_rcnn_soft_norm_tiny", head_norm=True)


@pytest.mark.parametrize("backbone", ["soft_norm_tiny", "softmax_tiny"])
def test_segmenters_train_and_segment(backbone):
    model = segmenter(f"upernet_{backbone}")
    labels = torch.randint(3, (2, 33, 47))
    labels[:, :5] = 255
    model(torch.randn(2, 3, 33, 47), labels).loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    for size in ((1, 1), (45, 7)):
        with torch.no_grad():
            assert model.eval()(torch.randn(1, 3, *size)).logits.shape == (1, 3, *size)


def test_transformers_saves_and_loads_a_segmenter_with_its_options(tmp_path):
    model = segmenter(published=True).eval()
    model.save_pretrained(tmp_path)
    loaded = UperNet.from_pretrained(tmp_path)
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(loaded(images).logits, model(images).logits)


def test_published_attention_has_the_published_landmarks():
    (attention, default) = (
        backbone_of(segmenter(published=published)).stages[0].blocks[0].attn
        for published in (True, False)
    )
    assert (attention.normalization, default.normalization) == ("landmark", "token")
    assert hasattr(attention.landmarks, "conv") and not hasattr(default.landmarks, "conv")


@pytest.mark.parametrize("create", [detection.create_model, segmentation.create_model])
def test_unknown_names_and_options_are_named(create):
    with pytest.raises(ValueError, match=r"'retina_soft_giant'; .* soft_norm_tiny"):
        create("retina_soft_giant")
    name = {detection: "mask_rcnn", segmentation: "upernet"}
    head = name[detection if create is detection.create_model else segmentation]
    with pytest.raises(TypeError, match="mini_size"):
        create(f"{head}_soft_norm_tiny", mini_size=3)
    with pytest.raises(ValueError, match="frozen_stages must be from 0 to 4, got 5"):
        create(f"{head}_soft_norm_tiny", backbone_options=SMALL, frozen_stages=5)


@pytest.mark.parametrize(
    ("head", "changed", "message"),
    [
        ("retinanet", {"labels": torch.tensor([2])}, "from 0 to 1 .*, got 2"),
        ("mask_rcnn", {"labels": torch.tensor([0])}, "from 1 to 2 .*, got 0"),
        ("mask_rcnn", {"boxes": torch.tensor([[5.0, 5, 5, 9]])}, "area above 0"),
    ],
)
def test_wrong_targets_are_named(head, changed, message):
    model = detector(f"{head}_soft_norm_tiny")
    with pytest.raises(ValueError, match=message):
        model([torch.rand(3, 64, 80)], [target(model.first_label) | changed])


def test_an_image_that_would_vanish_is_named():
    with pytest.raises(ValueError, match=r"image 0 has 1 × 97 pixels; .* less than one pixel"):
        detector().eval()([torch.rand(3, 1, 97)])


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        ((1, 3, 32, 32), torch.zeros(1, 32, 32), "a batch has one image"),
        ((2, 3, 32, 32), torch.zeros(2, 32, 31), r"labels must be .* \(2, 32, 32\)"),
        ((2, 3, 32, 32), torch.full((2, 32, 32), 3), "from 0 to 2, or 255 .* got 3"),
        ((2, 3, 32, 32), torch.full((2, 32, 32), -1), "got -1"),
        ((2, 3, 32, 32), torch.full((2, 32, 32), 255), "all labels are 255"),
    ],
)
def test_wrong_labels_are_named(images, labels, message):
    with pytest.raises(ValueError, match=message):
        segmenter()(torch.randn(images), labels.long())


def test_small_images_for_published_landmarks_are_named():
    model = segmenter(published=True).eval()
    with torch.no_grad():
        assert model(torch.randn(1, 3, 29, 29)).logits.isfinite().all()
        with pytest.raises(ValueError, match=r"at least 29 × 29 pixels, got 40 × 28"):
            model(torch.randn(1, 3, 40, 28))


@pytest.mark.parametrize("make", [detector, segmenter])
def test_checkpointing_passes_through_the_wrapper_of_features(make):
    model = make()
    backbone = model.backbone if make is detector else model
    backbone.set_grad_checkpointing()
    assert all(stage.grad_checkpointing for stage in backbone_of(model).stages)
    features = timm.create_model("soft_tiny", features_only=True, **SMALL)
    features.set_grad_checkpointing()
    assert features.model.stages[0].grad_checkpointing


@pytest.mark.parametrize("make", [detector, segmenter])
def test_frozen_stages_do_not_change_in_training(make):
    model = make(frozen_stages=2)
    stages = backbone_of(model).stages
    frozen = {name: value.clone() for name, value in stages[:2].state_dict().items()}
    if make is detector:
        loss = sum(model([torch.rand(3, 64, 80)] * 2, [target()] * 2).values())
    else:
        loss = model(torch.randn(2, 3, 32, 32), torch.randint(3, (2, 32, 32))).loss
    loss.backward()
    torch.optim.SGD(model.parameters(), 1.0).step()
    assert all(torch.equal(frozen[name], value) for name, value in stages[:2].state_dict().items())
    assert stages[2].patch_embed[0].conv.weight.grad.abs().max() > 0


@pytest.mark.parametrize("make", [detector, segmenter])
def test_a_classifier_s_weights_are_loaded(make, tmp_path):
    path = tmp_path / "classifier.safetensors"
    classifier = timm.create_model("soft_norm_tiny", num_classes=5, **SMALL)
    save_file(classifier.state_dict(), path)
    model = make()
    loaded = load_classifier(model, path)
    weights = classifier.state_dict()
    assert all(torch.equal(x, weights[name]) for name, x in backbone_of(model).state_dict().items())
    assert loaded.kept == []
    # The default has means in place of the published convolution.
    assert {"head.bias", "norm.weight"} < set(loaded.unused)
    assert "stages.0.blocks.0.attn.landmarks.conv.weight" in str(loaded)
    unused = load_classifier(make(published=True), path).unused
    assert sorted(unused) == ["head.bias", "head.weight", "norm.bias", "norm.weight"]


def test_a_file_of_another_backbone_is_named(tmp_path):
    path = tmp_path / "classifier.safetensors"
    save_file(
        timm.create_model("soft_norm_tiny", **SMALL | {"embed_dims": (32,) * 4}).state_dict(), path
    )
    with pytest.raises(
        InputError, match=r"does not fit the backbone: size mismatch .* There are \d+ more"
    ):
        load_classifier(detector(), path)
    save_file({"conv1.weight": torch.zeros(1)}, path)
    with pytest.raises(InputError, match=r"no weights of the backbone; it has conv1\.weight"):
        load_classifier(detector(), path)
    path.write_bytes(b"junk")
    with pytest.raises(InputError, match="cannot be read as safetensors"):
        load_classifier(detector(), path)
