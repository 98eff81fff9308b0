"""Decoding of image files, and the preprocessing of images: pixels first, then their normalisation."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from PIL import Image
from torch import Tensor

from cleanai_ray.data.pixels import Normalization
from cleanai_ray.errors import SampleError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """The way from an image to a network's input, in two halves with bytes between them.

    Of the two, only `pixels` needs the image; `normalise` is cheap and runs wherever the batch is. Together they are
    what torchvision's `weights.transforms()` does to a PIL image.

    Attributes:
        resize: Pixels of the shorter side after resizing; or height and width, whatever the image's proportions.
        crop: Height and width of the centre that is cut out after that.
        interpolation: Of resizing: `nearest`, `bilinear` or `bicubic`.
        antialias: Smooth before shrinking. PIL images always are.
        mean: Subtracted from values 0 to 1, one a channel.
        std: Divided by after that, one a channel.
        train_area: Least share of the area that a random part has in training; 1: there is no random part.
        train_mirror: Mirror half of the images in training.
    """

    resize: int | tuple[int, int]
    crop: tuple[int, int]
    interpolation: str = "bilinear"
    antialias: bool = True
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    train_area: float = 0.08
    train_mirror: bool = True

    def pixels(self, image: Image.Image | Tensor) -> Tensor:
        """Return an RGB image resized and cropped, uint8 [3, H, W].

        Args:
            image: A PIL image, or what a decoder made of it: uint8 [3, height, width] on any device.
        """
        from torchvision.transforms import functional  # slow to import: only where images are read from files

        size = [self.resize] if isinstance(self.resize, int) else list(self.resize)
        method = self._interpolation
        image = functional.resize(image, size, method, antialias=self.antialias)
        return _to_bytes(functional.center_crop(image, list(self.crop)))

    def training_pixels(self, image: Image.Image | Tensor) -> Tensor:
        """Return a random part of an RGB image at the size of the crop, mirrored half of the time, uint8 [3, H, W].

        The part has `train_area` to all of the area, usually 8 % (Szegedy et al. 2015); where that is 1, the image is
        resized and cropped as `pixels` does it. All is drawn from torch's global CPU generator.
        """
        part = self.pixels(image) if self.train_area == 1 else image
        return _to_bytes(self._training(part))

    def normalise(self, pixels: Tensor) -> Tensor:
        """Return network inputs float32 [..., C, H, W] for pixels uint8 [..., C, H, W], on the same device."""
        batch = pixels.reshape(-1, *pixels.shape[-3:])
        return Normalization(self.mean, self.std)(batch).reshape(pixels.shape)

    @property
    def _interpolation(self) -> object:
        from torchvision.transforms import InterpolationMode

        return InterpolationMode(self.interpolation)

    @cached_property
    def _training(self) -> Callable:
        from torchvision import transforms

        how = {"scale": (self.train_area, 1.0), "interpolation": self._interpolation, "antialias": self.antialias}
        part = [] if self.train_area == 1 else [transforms.RandomResizedCrop(self.crop, **how)]
        mirror = [transforms.RandomHorizontalFlip()] if self.train_mirror else []
        return transforms.Compose([*part, *mirror])


def _to_bytes(image: Image.Image | Tensor) -> Tensor:
    from torchvision.transforms import functional

    return image if isinstance(image, Tensor) else functional.pil_to_tensor(image)


def decode_image(content: bytes | Path, where: str) -> Image.Image:
    """Return an image in RGB.

    Args:
        content: The bytes of an encoded image, or the path of a file that holds them.
        where: Where the sample lies: its path, or its file and row.

    Raises:
        SampleError: When the image cannot be read or decoded; the message names the sample.
    """
    try:
        with Image.open(io.BytesIO(content) if isinstance(content, bytes) else content) as image:
            image.load()
            return image if image.mode == "RGB" else image.convert("RGB")  # which copies an image that is RGB already
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise SampleError(f"cannot be decoded: {' '.join(str(error).split())}", where) from error
