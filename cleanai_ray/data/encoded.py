"""The interface of data sets that decode an image file for each sample."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import ClassVar

from torch import Tensor
from torch.utils.data import Dataset

from cleanai_ray.config.sections import DataSection
from cleanai_ray.data.source import ImageSource, Shape
from cleanai_ray.data.transforms import Preprocessing, decode_image


class EncodedDataset(Dataset[tuple[Tensor, int]], ABC):
    """A split whose samples are encoded images: files, or bytes in a column.

    Args:
        preprocessing: Applied to each image.
        augment: Apply the training transform in place of resizing and cropping the centre.
    """

    def __init__(self, preprocessing: Preprocessing, *, augment: bool) -> None:
        self.preprocessing = preprocessing
        self.augment = augment

    @property
    def multiprocessing_context(self) -> str | None:
        """Start method that worker processes need; None: the usual one."""
        return None

    @abstractmethod
    def __len__(self) -> int:
        """Return the number of samples."""

    @abstractmethod
    def encoded(self, index: int) -> tuple[bytes | Path, int]:
        """Return the encoded image of a sample, or the path of its file, and its class.

        Raises:
            SampleError: When the image cannot be read.
            DataError: When the data set is malformed, or cannot be reached.
        """

    @abstractmethod
    def where(self, index: int) -> str:
        """Return where a sample lies: its path or URL, or its file and row."""

    def pixels(self, index: int) -> tuple[Tensor, int]:
        """Return the decoded image of a sample, uint8 [3, H, W], as the network sees it before it is normalised.

        Returns:
            The pixels and the class. `preprocessing.normalise` makes inputs of them.

        Raises:
            SampleError: When the image cannot be read or decoded.
            DataError: When the data set is malformed, or cannot be reached.
        """
        content, label = self.encoded(index)
        image = decode_image(content, self.where(index))
        return (self.preprocessing.training_pixels if self.augment else self.preprocessing.pixels)(image), label

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        pixels, label = self.pixels(int(index))
        return self.preprocessing.normalise(pixels), label


class EncodedSource(ImageSource):
    """A data set of encoded images.

    Attributes:
        preprocessing: What is done to its images: `data.transform`, or else what the model's published weights ask for.
    """

    channels: ClassVar[tuple[int, ...]] = (3,)

    def __init__(self, data: DataSection, input_shape: Shape) -> None:
        super().__init__(data, input_shape)
        self.preprocessing = usual_preprocessing(input_shape)


def usual_preprocessing(input_shape: Shape) -> Preprocessing:
    """Return the usual preprocessing for ImageNet (He et al. 2016), in proportion for other sizes than 224.

    The shorter side becomes 256/224 of the input's longer side.
    """
    _, height, width = input_shape
    return Preprocessing(resize=round(max(height, width) * 256 / 224), crop=(height, width))
