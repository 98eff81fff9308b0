"""The interface of a data set, and the function that opens one."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset

from cleanai_ray.config.sections import DataSection, ModelSection, TransformSection
from cleanai_ray.data.source_preprocessing import order_of_classes, with_published
from cleanai_ray.errors import DataError
from cleanai_ray.registry import DATASETS

Shape = tuple[int, ...]
ImageDataset = Dataset[tuple[Tensor, Any]]

_ALIASES = {"val": ("validation", "test"), "validation": ("val", "test"), "test": ("val", "validation")}


class ImageSource(ABC):
    """A labelled image data set with named splits. Subclasses are registered in `cleanai_ray.registry.DATASETS`.

    Args:
        data: The study's `data`.
        input_shape: Channels, height and width of the images to deliver.

    Raises:
        DataError: When the data set is missing or malformed, or an option is unknown.
    """

    tasks: ClassVar[tuple[str, ...]] = ("classification",)
    """Names of the tasks whose targets it delivers."""

    channels: ClassVar[tuple[int, ...]] = (3,)
    """Numbers of channels that the images can be delivered with; empty where samples are no images."""

    option_names: ClassVar[tuple[str, ...]] = ()
    """Keys that `data.options` may have."""

    transform_names: ClassVar[tuple[str, ...]] = ()
    """Keys that `data.transform` may have. With `resize`, they follow from a model's pretrained weights, too."""

    has_path: ClassVar[bool] = False
    """True if `data.path` says which data set it is."""

    num_classes: int
    class_names: tuple[str, ...]
    splits: tuple[str, ...]
    """Names of the splits that exist, without aliases."""
    mirrors: bool = True
    """True if an image mirrored left to right is an image of the same kind."""

    location: tuple[str | None, ...]
    """What tells the data set from others of its kind, the same whichever folder a process works in."""

    def __init__(self, data: DataSection, input_shape: Shape) -> None:
        unknown = sorted(set(data.options) - set(self.option_names))
        if unknown:
            allowed = ", ".join(self.option_names) or "none"
            raise DataError(f"data.options holds '{unknown[0]}'; allowed for data set '{data.name}': {allowed}")
        transform = data.transform or TransformSection()
        idle = [name for name in transform.given if name not in self.transform_names]
        if idle:
            allowed = ", ".join(self.transform_names) or "none"
            raise DataError(f"data.transform holds '{idle[0]}'; allowed for data set '{data.name}': {allowed}")
        if data.path is not None and not self.has_path:
            raise DataError(f"data.path is '{data.path}'; allowed for data set '{data.name}': null (see data.root)")
        self.name = data.name
        options = ", ".join(f"{name}={value}" for name, value in sorted(data.options.items()))
        self.location = data.name, _absolute(data.root), _absolute(data.path, only_folders=True), options
        self.input_shape = input_shape

    def resolve(self, split: str) -> str:
        """Return the split that a name stands for.

        Where a data set lacks `val`, `validation` or `test`, one of the other two stands for it.

        Raises:
            DataError: When there is no such split.
        """
        for name in (split, *_ALIASES.get(split, ())):
            if name in self.splits:
                return name
        raise DataError(f"data set '{self.name}' has no split '{split}'; allowed: {', '.join(self.splits)}")

    @abstractmethod
    def num_samples(self, split: str) -> int:
        """Return the number of images of a split."""

    @abstractmethod
    def dataset(self, split: str, *, augment: bool = False) -> ImageDataset:
        """Return a split as a map-style data set.

        Items are a normalised float32 image [C, H, W] and its class, an int; one that cannot be read raises a
        `SampleError`. Some data sets do more, and are read faster by `batches`:

        - `pixels` and `normalise` (`pixels.PixelDataset`): batches travel as bytes and are normalised on the device;
        - `stamps` and `preparation` besides (`pixels.StampedDataset`): decoded images are kept, and decoded once;
        - `batch(indices, seed) -> (images [N, C, H, W], labels [N])`: a whole batch is read at a time;
        - `pixel_batch(indices, seed)`, likewise, and `normalise`: it travels as bytes.

        The training transform of a sample depends on a seed and the sample's index alone, so that it is the same
        however samples are shared out. Whole batches derive it from `augment.sample_seeds(seed, indices)`. A single
        item draws from torch's global CPU generator, which `batches` seeds for each and restores afterwards; no other
        source of randomness is seeded.

        Args:
            split: A name that `resolve` accepts.
            augment: Apply the data set's usual random training transform.
        """

    def describe_preprocessing(self) -> dict[str, Any]:
        """Return what is done to an image that is not augmented, as JSON values, for the record of a run."""
        return {}

    def opened(self, split: str, *, augment: bool = False) -> ImageDataset:
        """Return what `dataset` returns, the same object each time, so that worker processes know it already."""
        kept: dict[tuple[str, bool], ImageDataset] = self.__dict__.setdefault("_opened_datasets", {})
        key = self.resolve(split), augment
        if key not in kept:
            kept[key] = self.dataset(split, augment=augment)
        return kept[key]

    def classes(self, split: str) -> np.ndarray | None:
        """Return the class of each image of a split, int64 [N], without reading images; None where that is not known.

        The default is None: samples need not have one class each.
        """
        return None

    def reading_order(self, split: str, indices: np.ndarray) -> np.ndarray:
        """Return the places 0 to N - 1 of indices [N] such that samples which are stored together follow each other.

        Shards of the calibration are cut from this order, so that each reads a contiguous part of the data set. The
        default is the order of the indices.
        """
        return np.arange(len(indices))

    def number_classes(self, names: tuple[str, ...]) -> None:
        """Number the classes anew, before any split is opened, as a model numbers them.

        Args:
            names: The names of all classes, in the model's order.

        Raises:
            DataError: When the data set cannot number them in another order than its own.
        """
        first = next(number for number, name in enumerate(names) if name != self.class_names[number])
        raise DataError(
            f"class {first} of data set '{self.name}' is '{self.class_names[first]}' and that of the model "
            f"'{names[first]}', with the same names otherwise; allowed: the model's order, or image_folder, which can "
            "take it over"
        )

    @abstractmethod
    def describe(self, split: str, index: int) -> str:
        """Return where a sample lies, for error messages: its path, or its row."""


def per_channel(data: DataSection, name: str, usual: tuple[float, ...]) -> tuple[float, ...]:
    """Return `mean` or `std` of `data.transform`, or the usual values, which say how many there must be.

    Raises:
        DataError: When there are more or fewer.
    """
    values = None if data.transform is None else getattr(data.transform, name)
    if values is not None and len(values) != len(usual):
        raise DataError(
            f"data.transform.{name} is {list(values)}; allowed for data set '{data.name}': {len(usual)} "
            f"{'number' if len(usual) == 1 else 'numbers'}, one a channel"
        )
    return usual if values is None else values


def _absolute(place: str | None, *, only_folders: bool = False) -> str | None:
    """Return the absolute path of a place, or the place itself: a URL, or a name that is no folder."""
    if place is None or "://" in place:
        return place
    path = os.path.abspath(os.path.expanduser(place))
    return place if only_folders and not os.path.isdir(path) else path


def find_root(root: str | None, usual: Iterable[str], expected: str) -> Path:
    """Return the folder of a data set.

    Args:
        root: `data.root`; None for the first of the usual places that exists.
        usual: Folders to look for.
        expected: What the folder should hold, for the error message.

    Raises:
        DataError: When there is no such folder.
    """
    if root is not None:
        folder = Path(root).expanduser()
        if not folder.is_dir():
            raise DataError(f"data.root '{root}' does not exist or is not a folder; expected {expected}")
        return folder
    places = tuple(usual)
    for place in places:
        if Path(place).expanduser().is_dir():
            return Path(place).expanduser()
    looked = f" and {', '.join(places)} does not exist" if places else ""
    raise DataError(f"data.root is null{looked}; expected {expected}")


def open_image_source(data: DataSection, model: ModelSection, task: str = "classification") -> ImageSource:
    """Open a data set for a model's inputs and classes.

    Images are preprocessed as the model's source or its pretrained weights ask for, where `data.transform` does not say
    otherwise, and classes are numbered as the model's where both have the same names in another order.

    Args:
        data: The study's `data`.
        model: The study's `model`: `input_shape`, `num_classes`, and whose weights it has.
        task: Name of the study's task.

    Raises:
        RegistryError: When no data set has this name.
        DataError: When it is missing or malformed, or does not fit the model or the task.
    """
    kind: type[ImageSource] = DATASETS.get(data.name)
    if task not in kind.tasks:
        fitting = [name for name in DATASETS.names() if task in getattr(DATASETS.get(name), "tasks", ())]
        raise DataError(f"data.name is '{data.name}'; allowed for task {task}: {', '.join(fitting) or 'a plug-in'}")
    if kind.channels and model.input_shape[0] not in kind.channels:
        raise DataError(
            f"model.input_shape is {list(model.input_shape)}; allowed channels with data set '{data.name}': "
            f"{', '.join(map(str, kind.channels))}"
        )
    source = kind(with_published(data, model, kind), model.input_shape)
    if source.num_classes != model.num_classes:
        place = data.root or data.path
        raise DataError(
            f"model.num_classes is {model.num_classes}; allowed with data set '{data.name}'"
            f"{f' at {place}' if place else ''}: {source.num_classes}, the number of its classes"
        )
    order = order_of_classes(model, tuple(getattr(source, "class_names", ())), data.name)
    if order is not None:
        source.number_classes(order)
    return source
