"""Samples of an image data set with any number of labels each, for multi-label classification."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from cleanai_ray.data.encoded import EncodedDataset


def marks_of(labels: Iterable[int], num_classes: int) -> np.ndarray:
    """Return uint8 [classes]: 1 for each of the labels, 0 for the other classes."""
    marks = np.zeros(num_classes, np.uint8)
    marks[list(labels)] = 1
    return marks


class LabelSetDataset(Dataset[tuple[Tensor, Tensor]]):
    """A split of encoded images with a row of marks each, in place of one class.

    Args:
        images: The images; their own class is not read.
        marks: 1 where an image has a class, uint8 [N, classes].
    """

    def __init__(self, images: EncodedDataset, marks: np.ndarray) -> None:
        self._images = images
        self._marks = marks

    def __len__(self) -> int:
        return len(self._marks)

    @property
    def multiprocessing_context(self) -> str | None:
        """Start method that worker processes need; None: the usual one."""
        return self._images.multiprocessing_context

    def where(self, index: int) -> str:
        """Return where a sample lies."""
        return self._images.where(index)

    def shuffled(self, indices: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        """Return indices in a random order, which suits the storage of the images."""
        own: Any = getattr(self._images, "shuffled", None)
        found: np.ndarray = generator.permutation(indices) if own is None else own(indices, generator)
        return found

    def pixels(self, index: int) -> tuple[Tensor, Tensor]:
        """Return the decoded image of a sample, uint8 [3, H, W], and its marks, float32 [classes].

        Raises:
            SampleError: When the image cannot be read or decoded.
        """
        return self._images.pixels(index)[0], torch.from_numpy(self._marks[index]).float()

    def normalise(self, pixels: Tensor) -> Tensor:
        """Return network inputs float32 [..., C, H, W] for pixels uint8 [..., C, H, W], on the same device."""
        return self._images.normalise(pixels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        pixels, marks = self.pixels(int(index))
        return self.normalise(pixels), marks


def names_in(texts: Sequence[str]) -> list[list[str]]:
    """Return the names in each text, which semicolons or vertical bars part; an empty text holds none."""
    return [[name.strip() for name in text.replace("|", ";").split(";") if name.strip()] for text in texts]
