"""Data sets in the layout of COCO: folders of images, and a JSON file of instances for each."""

import json
from pathlib import Path
from typing import Any

import torch
from faster_coco_eval import COCO
from torch import Tensor
from torchvision import tv_tensors

from examples.dense.problem import Data
from examples.dense.samples import Truth, read_image, size_of
from examples.training.errors import InputError, UnreadableFile
from examples.training.screen import Screen


class CocoSplit:
    """The images of a split, and the boxes, labels and masks of their objects.

    Args:
        file: of the instances, such as annotations/instances_train2017.json.
        masks: whether samples have masks.

    Raises:
        InputError: the file cannot be read, or its folder of images is missing.
    """

    def __init__(self, file: Path, masks: bool) -> None:
        self.file = file
        self.masks = masks
        try:
            self.coco = COCO(json.loads(file.read_text()))
            self.categories: dict[int, str] = {
                category["id"]: category["name"]
                for category in sorted(self.coco.dataset["categories"], key=lambda x: x["id"])
            }
            self.images: list[dict[str, Any]] = list(self.coco.dataset["images"])
            self.coco.dataset["annotations"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"{file} cannot be read as instances of COCO, with images, annotations and "
                f"categories ({type(error).__name__}: {error})"
            ) from error
        self.labels = {category: label for label, category in enumerate(self.categories)}
        split = file.stem.removeprefix("instances_")
        data = file.parent.parent
        folders = [data / split, data / "images" / split]
        self.folder = next((folder for folder in folders if folder.is_dir()), folders[0])
        if not self.folder.is_dir():
            raise InputError(f"the images of {file} are in neither {folders[0]} nor {folders[1]}")

    def __len__(self) -> int:
        return len(self.images)

    def kind(self, index: int) -> bool:
        """Whether an image is upright: a batch has only upright or only wide images."""
        image = self.images[index]
        return image["height"] > image["width"]

    def read(self, index: int) -> tuple[Tensor, Truth]:
        """An image (3, height, width) of uint8 and its objects.

        Returns:
            The image, and ``boxes`` (objects, 4), as left, top, right, bottom in pixels, ``labels``
            from 0, ``iscrowd``, ``area`` in pixels, and perhaps ``masks`` (objects, height, width)
            of 0 and 1.

        Raises:
            UnreadableFile: the image is missing, truncated or of another size.
        """
        entry = self.images[index]
        path = self.folder / entry["file_name"]
        image = read_image(path)
        _, height, width = image.shape
        if (height, width) != (entry["height"], entry["width"]):
            raise UnreadableFile(_other_size(path, (height, width), entry))
        objects = self.coco.imgToAnns[entry["id"]]
        boxes = torch.tensor([x["bbox"] for x in objects], dtype=torch.float32).view(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        canvas: Any = (height, width)
        truth: Truth = {
            "boxes": tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=canvas),
            "labels": torch.tensor([self.labels[x["category_id"]] for x in objects]).long(),
            "iscrowd": torch.tensor([x.get("iscrowd", 0) for x in objects]).long(),
            "area": torch.tensor([float(x["area"]) for x in objects]),
        }
        if self.masks:
            masks = [torch.from_numpy(self.coco.annToMask(x)) for x in objects]
            empty = torch.empty(0, height, width, dtype=torch.uint8)
            truth["masks"] = tv_tensors.Mask(torch.stack(masks) if masks else empty)
        return image, truth

    def broken(self, screen: Screen) -> list[str]:
        """Takes out objects and images that cannot be used; returns a line for each.

        Images are not decoded here: a truncated one is found when it is read.

        Args:
            screen: for a bar.
        """
        problems = []
        usable = []
        with screen.bar(f"checking {self.file.name}", len(self.images), "images") as advance:
            for image in self.images:
                advance()
                path = self.folder / image["file_name"]
                try:
                    size = size_of(path)
                except UnreadableFile as error:
                    problems.append(str(error))
                    continue
                if size != (image["height"], image["width"]):
                    problems.append(_other_size(path, size, image))
                    continue
                usable.append(image)
                objects = self.coco.imgToAnns[image["id"]]
                faults = [self._fault(x, image) for x in objects]
                problems += [f"{self.file}: {fault}" for fault in faults if fault]
                self.coco.imgToAnns[image["id"]] = [
                    x for x, fault in zip(objects, faults, strict=True) if not fault
                ]
        self.images = usable
        return problems

    def _fault(self, annotation: dict[str, Any], image: dict[str, Any]) -> str | None:
        """What is wrong with an object, if anything is."""
        name = f"object {annotation.get('id')} of {image['file_name']}"
        category, box = annotation.get("category_id"), annotation.get("bbox")
        if category not in self.categories:
            return f"{name} has category {category}, which is not in the file's categories"
        if not isinstance(box, list) or len(box) != 4 or not (box[2] > 0 and box[3] > 0):
            return f"{name} has a box without area, left, top, width, height = {box}"
        if "area" not in annotation:
            return f"{name} has no area"
        if not self.masks:
            return None
        shape = annotation.get("segmentation")
        if isinstance(shape, dict):
            size = (image["height"], image["width"])
            if tuple(shape.get("size", ())) != size:
                return f"{name} has a mask of {shape.get('size')}, and its image is {size}"
        elif not isinstance(shape, list) or not shape or min(map(len, shape)) < 6:
            return f"{name} has no mask: expected polygons of three corners or more, or runs"
        return None


def open_data(folder: Path, masks: bool, screen: Screen) -> Data:
    """The training and validation images of ``folder``, checked.

    Args:
        folder: with annotations/instances_train*.json and instances_val*.json.
        masks: whether samples have masks.
        screen: gets a line for each broken image or object.

    Raises:
        InputError: files are missing, the splits have different categories, or an image or object
            is broken and is not to be skipped.
    """
    train, val = (CocoSplit(_file(folder, split), masks) for split in ("train", "val"))
    if train.categories != val.categories:
        differing = set(train.categories.items()) ^ set(val.categories.items())
        raise InputError(
            f"{train.file} and {val.file} must have the same categories; only one of them has "
            f"{', '.join(f'{name} ({number})' for number, name in sorted(differing))}"
        )
    for split in (train, val):
        screen.note_unreadable(split.broken(screen))
        if not len(split):
            raise InputError(f"{split.file} has no images that can be used")
    return Data(train, val, list(train.categories.values()))


def _file(folder: Path, split: str) -> Path:
    found = sorted(folder.glob(f"annotations/instances_{split}*.json"))
    if len(found) != 1:
        raise InputError(
            f"expected one file {folder}/annotations/instances_{split}*.json, found "
            f"{', '.join(path.name for path in found) or 'none'}"
        )
    return found[0]


def _other_size(path: Path, size: tuple[int, int], entry: dict[str, Any]) -> str:
    return (
        f"{path}: {size[0]} × {size[1]} pixels, and the instances are for {entry['height']} × "
        f"{entry['width']}"
    )
