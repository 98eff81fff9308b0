"""The interface of data sets that decode an image file for each sample."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor
from torch.utils.data import Dataset

from cleanai_ray.config.sections import DataSection, TransformSection
from cleanai_ray.data.pixels import decoder_version
from cleanai_ray.data.source import ImageSource, Shape, per_channel
from cleanai_ray.data.transforms import IMAGENET_MEAN, IMAGENET_STD, Preprocessing, decode_image
from cleanai_ray.errors import DataError


class EncodedDataset(Dataset[tuple[Tensor, int]], ABC):
    """A split whose samples are encoded images: files, or bytes in a column.

    Args:
        preprocessing: Applied to each image.
        augment: Apply the training transform in place of resizing and cropping the centre.
    """

    def __init__(self, preprocessing: Preprocessing, *, augment: bool) -> None:
        self.preprocessing = preprocessing
        self.augment = augment
        self.preparation = f"{preprocessing} {decoder_version()}"

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

    def content(self, index: int) -> tuple[bytes, int]:
        """Return what `encoded` returns, with the content of the file.

        Raises:
            OSError: When the file cannot be read; otherwise as `encoded`.
        """
        content, label = self.encoded(index)
        return content.read_bytes() if isinstance(content, Path) else content, label

    @abstractmethod
    def where(self, index: int) -> str:
        """Return where a sample lies: its path or URL, or its file and row."""

    def pixels(self, index: int) -> tuple[Tensor, int]:
        """Return the decoded image of a sample, uint8 [3, H, W], as the network sees it before it is normalised.

        Returns:
            The pixels and the class. `normalise` makes inputs of them.

        Raises:
            SampleError: When the image cannot be read or decoded.
            DataError: When the data set is malformed, or cannot be reached.
        """
        content, label = self.encoded(index)
        image = decode_image(content, self.where(index))
        return (self.preprocessing.training_pixels if self.augment else self.preprocessing.pixels)(image), label

    def normalise(self, pixels: Tensor) -> Tensor:
        """Return network inputs float32 [..., C, H, W] for pixels uint8 [..., C, H, W], on the same device."""
        return self.preprocessing.normalise(pixels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        pixels, label = self.pixels(int(index))
        return self.normalise(pixels), label


class EncodedSource(ImageSource):
    """A data set of encoded images.

    Attributes:
        preprocessing: What is done to its images: `data.transform`, and what is usual where that says nothing.
    """

    transform_names: ClassVar[tuple[str, ...]] = tuple(TransformSection.model_fields)

    def __init__(self, data: DataSection, input_shape: Shape) -> None:
        super().__init__(data, input_shape)
        self.preprocessing = _preprocessing(data, input_shape)

    def describe(self, split: str, index: int) -> str:
        """Return where a sample lies: its path or URL, or its file or split and its row there."""
        dataset = self.opened(split)
        assert isinstance(dataset, EncodedDataset)
        return dataset.where(index)

    def describe_preprocessing(self) -> dict[str, Any]:
        """Return resize, crop, interpolation, mean and std, and what is done in training."""
        return asdict(self.preprocessing)


def _preprocessing(data: DataSection, input_shape: Shape) -> Preprocessing:
    """Return the preprocessing of a data set's images.

    By default it is that of He et al. (2016): the shorter side becomes 256/224 of the input's longer side.
    """
    _, height, width = input_shape
    given = data.transform or TransformSection()
    resize = given.resize or round(max(height, width) * 256 / 224)
    if given.crop is not None and (given.crop, given.crop) != (height, width):
        fitting = f"{height} or null" if height == width else "null"
        raise DataError(
            f"data.transform.crop is {given.crop}; allowed with model.input_shape {list(input_shape)}: {fitting}"
        )
    exact = None if isinstance(resize, int) else resize
    if exact is not None and (exact[0] < height or exact[1] < width):
        raise DataError(
            f"data.transform.resize is {list(exact)}; allowed with model.input_shape {list(input_shape)}: "
            f"at least [{height}, {width}]"
        )
    if isinstance(resize, int) and resize < min(height, width):
        raise DataError(
            f"data.transform.resize is {resize}; allowed with model.input_shape {list(input_shape)}: "
            f"at least {min(height, width)}"
        )
    return Preprocessing(
        resize=resize,
        crop=(height, width),
        interpolation=given.interpolation or "bilinear",
        mean=per_channel(data, "mean", IMAGENET_MEAN),
        std=per_channel(data, "std", IMAGENET_STD),
        **{name: getattr(given, name) for name in ("train_area", "train_mirror") if name in given.given},
    )
