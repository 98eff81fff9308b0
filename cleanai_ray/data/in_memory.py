"""Data sets that fit in memory: stored as bytes, and turned into normalised tensors a batch at a time."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.data import Dataset

from cleanai_ray.config.sections import DataSection
from cleanai_ray.data.augment import Indices, random_crop, random_flip, sample_seeds
from cleanai_ray.data.pixels import Normalization
from cleanai_ray.data.source import ImageSource, Shape, per_channel
from cleanai_ray.errors import DataError


@dataclass(frozen=True, kw_only=True)
class PixelFormat:
    """The conversion of bytes to network inputs, and the training transform.

    Attributes:
        scale: Pixels are divided by this.
        mean: Subtracted after that, one value a channel of the stored images.
        std: Divided by after that, one value a channel.
        padding: Random crop of the training transform: zero padding, pixels.
        flip: True if the training transform mirrors images at random.
    """

    scale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]
    padding: int
    flip: bool


class InMemoryDataset(Dataset[tuple[Tensor, int]]):
    """One split in memory.

    Args:
        images: Pixels, uint8 [N, C, H, W].
        labels: Classes, int64 [N].
        pixels: How to convert them to inputs.
        input_shape: Channels, height and width to deliver: one stored channel is repeated, another size is reached by
            bilinear interpolation.
        augment: Apply the training transform.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        *,
        pixels: PixelFormat,
        input_shape: Shape,
        augment: bool = False,
    ) -> None:
        self._images = images
        self._labels = labels
        self._pixels = pixels
        self._input_shape = input_shape
        self._augment = augment
        self.normalise = Normalization(pixels.mean, pixels.std, pixels.scale, channels=input_shape[0])

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        images, labels = self.batch([index])
        return images[0], int(labels[0])

    def batch(self, indices: Indices, seed: int = 0) -> tuple[Tensor, Tensor]:
        """Return images float32 [N, C, H, W] and labels int64 [N] of several samples.

        Args:
            indices: The samples.
            seed: Together with a sample's index, it determines the training transform of the sample.
        """
        images, labels = self.pixel_batch(indices, seed)
        return self.normalise(images), labels

    def pixel_batch(self, indices: Indices, seed: int = 0) -> tuple[Tensor, Tensor]:
        """Return several samples before `normalise`: images uint8 [N, C, H, W], and labels int64 [N].

        Images of another size than is stored are resized here, and are float32, divided by the scale already: another
        device would not interpolate to the same bits.

        Args:
            indices: The samples.
            seed: Together with a sample's index, it determines the training transform of the sample.
        """
        rows = torch.as_tensor(np.asarray(indices, dtype=np.int64))
        images = self._images[rows]
        if self._augment:
            seeds = sample_seeds(seed, rows)
            images = random_crop(images, self._pixels.padding, seeds)
            images = random_flip(images, seeds) if self._pixels.flip else images
        size = tuple(self._input_shape[1:])
        if images.shape[-2:] != size:
            images = images.float() / self._pixels.scale
            images = functional.interpolate(images, size=size, mode="bilinear", align_corners=False, antialias=True)
        return images, self._labels[rows]


class InMemorySource(ImageSource):
    """A data set whose splits are read whole, when they are first needed.

    `data.options.crop_padding` changes how many pixels the training transform may move an image (0: it moves none), and
    `data.options.flip` whether it mirrors.
    """

    option_names: ClassVar[tuple[str, ...]] = ("crop_padding", "flip")
    transform_names: ClassVar[tuple[str, ...]] = ("mean", "std")
    pixels: PixelFormat
    _cache: dict[str, tuple[Tensor, Tensor]]

    def __init__(self, data: DataSection, input_shape: Shape) -> None:
        super().__init__(data, input_shape)
        padding = data.options.get("crop_padding", self.pixels.padding)
        if not isinstance(padding, int) or isinstance(padding, bool) or padding < 0:
            raise DataError(f"data.options.crop_padding is {padding!r}; allowed: a whole number of pixels, at least 0")
        flip = data.options.get("flip", self.pixels.flip)
        if not isinstance(flip, bool):
            raise DataError(f"data.options.flip is {flip!r}; allowed: true or false")
        mean, std = (per_channel(data, name, getattr(self.pixels, name)) for name in ("mean", "std"))
        self.pixels = replace(self.pixels, padding=padding, flip=flip, mean=mean, std=std)
        self.mirrors = flip

    def describe_preprocessing(self) -> dict[str, Any]:
        """Return mean and std of the pixels, on a scale from 0 to 1."""
        return {"mean": self.pixels.mean, "std": self.pixels.std}

    @abstractmethod
    def read(self, split: str) -> tuple[np.ndarray, np.ndarray]:
        """Return pixels uint8 [N, C, H, W] and classes [N] of a split."""

    def _tensors(self, split: str) -> tuple[Tensor, Tensor]:
        cache = self.__dict__.setdefault("_cache", {})
        name = self.resolve(split)
        if name not in cache:
            images, labels = self.read(name)
            cache[name] = torch.from_numpy(images), torch.from_numpy(labels.astype(np.int64))
        return cache[name]

    def num_samples(self, split: str) -> int:
        """Return the number of images of a split."""
        return len(self._tensors(split)[1])

    def classes(self, split: str) -> np.ndarray:
        """Return the class of each image of a split."""
        return self._tensors(split)[1].numpy()

    def dataset(self, split: str, *, augment: bool = False) -> InMemoryDataset:
        """Return a split; it shares the source's memory."""
        images, labels = self._tensors(split)
        return InMemoryDataset(images, labels, pixels=self.pixels, input_shape=self.input_shape, augment=augment)
