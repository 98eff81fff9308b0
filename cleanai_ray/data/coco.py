"""Images with boxes in the layout of COCO (Lin et al. 2014), for detection."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from cleanai_ray.config.sections import DataSection
from cleanai_ray.data.augment import Indices
from cleanai_ray.data.source import ImageSource, Shape, find_root
from cleanai_ray.errors import DataError
from cleanai_ray.registry import DATASETS

Boxes = dict[str, Tensor]
_SPLITS = ("train", "val", "validation", "test")
_EXPECTED = "a folder with annotations/instances_train.json and instances_val.json, and the images in train/ and val/"


class BoxDataset(Dataset[tuple[Tensor, Boxes]]):
    """One split: image files, and the boxes of each.

    Args:
        files: Paths of the images.
        boxes: Of each image (x, y, width, height) in pixels of the file, float32 [n, 4].
        labels: Of each image, the classes of its boxes, from 1, int64 [n].
        crowds: Of each image, whether each box is one that counts neither for nor against a detector, bool [n].
        input_shape: Channels, height and width to deliver; another size is reached by bilinear interpolation.
    """

    def __init__(
        self,
        files: list[Path],
        boxes: list[np.ndarray],
        labels: list[np.ndarray],
        crowds: list[np.ndarray],
        input_shape: Shape,
    ) -> None:
        self._files = files
        self._boxes = boxes
        self._labels = labels
        self._crowds = crowds
        self._input_shape = input_shape

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> tuple[Tensor, Boxes]:
        channels, height, width = self._input_shape
        file = self._files[index]
        try:
            with Image.open(file) as image:
                scale = np.array([width / image.size[0], height / image.size[1]] * 2, np.float32)
                pixels = np.asarray(image.convert("L" if channels == 1 else "RGB").resize((width, height), 2))
        except (OSError, SyntaxError, ValueError) as error:
            raise DataError(f"sample '{file}' cannot be read: {' '.join(str(error).split())}") from error
        shaped = pixels[None] if channels == 1 else pixels.transpose(2, 0, 1)
        corners = self._boxes[index] * scale
        corners[:, 2:] += corners[:, :2]
        target = {"boxes": torch.from_numpy(corners), "labels": torch.from_numpy(self._labels[index])}
        target["iscrowd"] = torch.from_numpy(self._crowds[index].astype(np.int64))
        return torch.from_numpy(shaped.astype(np.float32) / 255.0), target

    def batch(self, indices: Indices, seed: int = 0) -> tuple[Tensor, list[Boxes]]:
        """Return images float32 [N, C, H, W] from 0 to 1, and of each a dict of boxes, labels and iscrowd."""
        images, targets = zip(*(self[int(index)] for index in np.asarray(indices)), strict=True)
        return torch.stack(images), list(targets)


def columns_of(
    objects: Iterable[list[tuple[list[float], int, bool]]],
) -> tuple[list[np.ndarray], list[np.ndarray], list[np.ndarray]]:
    """Return the boxes, labels and crowds of a `BoxDataset`, from (box, label, is a crowd) of each image's objects."""
    listed = list(objects)
    boxes = [np.array([box for box, _, _ in of], np.float32).reshape(-1, 4) for of in listed]
    labels = [np.array([label for _, label, _ in of], np.int64) for of in listed]
    return boxes, labels, [np.array([is_crowd for _, _, is_crowd in of], bool) for of in listed]


@DATASETS.register("coco")
class Coco(ImageSource):
    """Boxes in annotations/instances_SPLIT.json, as COCO writes them, and images in SPLIT/ (train, val, test).

    The classes are the categories, ordered by their id, from 1; the model's `num_classes` counts the background, too.
    Boxes without area are left out. Detections in a crowd are not counted, and it is not learned: see `iscrowd`.
    """

    tasks = ("detection",)
    channels = (1, 3)

    def __init__(self, data: DataSection, input_shape: Shape) -> None:
        super().__init__(data, input_shape)
        self._root = find_root(data.root, (), _EXPECTED)
        self.splits = tuple(split for split in _SPLITS if self._annotations(split).is_file())
        if not self.splits:
            raise DataError(f"data.root '{data.root}' holds no annotations; expected {_EXPECTED}")
        self._contents: dict[str, dict[str, Any]] = {}
        self._opened: dict[str, BoxDataset] = {}
        self._files: dict[str, list[Path]] = {}
        categories = sorted(self._content(self.splits[0])["categories"], key=lambda entry: entry["id"])
        self._labels = {entry["id"]: place for place, entry in enumerate(categories, start=1)}
        self.class_names = ("background", *(str(entry["name"]) for entry in categories))
        self.num_classes = len(self.class_names)

    def _annotations(self, split: str) -> Path:
        return self._root / "annotations" / f"instances_{split}.json"

    def _content(self, split: str) -> dict[str, Any]:
        if split not in self._contents:
            path = self._annotations(split)
            try:
                content = json.loads(path.read_text(encoding="utf-8"))
            except (OSError, ValueError) as error:
                raise DataError(f"'{path}' cannot be read: {error}") from error
            absent = [key for key in ("images", "annotations", "categories") if key not in content]
            if absent:
                raise DataError(f"'{path}' has no '{absent[0]}'; expected COCO's annotations of boxes")
            self._contents[split] = content
        return self._contents[split]

    def _split(self, split: str) -> BoxDataset:
        name = self.resolve(split)
        if name not in self._opened:
            content = self._content(name)
            images = sorted(content["images"], key=lambda entry: entry["id"])
            found: dict[int, list[tuple[list[float], int, bool]]] = {entry["id"]: [] for entry in images}
            for entry in content["annotations"]:
                if min(entry["bbox"][2:]) <= 0:
                    continue
                if entry["image_id"] not in found or entry["category_id"] not in self._labels:
                    raise DataError(
                        f"'{self._annotations(name)}' has an annotation of image {entry['image_id']} and "
                        f"category {entry['category_id']}; allowed: those that it lists"
                    )
                label, is_crowd = self._labels[entry["category_id"]], bool(entry.get("iscrowd"))
                found[entry["image_id"]].append((entry["bbox"], label, is_crowd))
            self._files[name] = [self._root / name / entry["file_name"] for entry in images]
            self._opened[name] = BoxDataset(self._files[name], *columns_of(found.values()), self.input_shape)
        return self._opened[name]

    def num_samples(self, split: str) -> int:
        """Return the number of images of a split."""
        return len(self._split(split))

    def dataset(self, split: str, *, augment: bool = False) -> BoxDataset:
        """Return a split; there is no training transform."""
        return self._split(split)

    def describe(self, split: str, index: int) -> str:
        """Return the path of an image."""
        self._split(split)
        return str(self._files[self.resolve(split)][index])
