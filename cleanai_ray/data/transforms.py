"""Decoding of image files, and the usual ImageNet transforms (He et al. 2016)."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

from PIL import Image
from torch import Tensor

from cleanai_ray.errors import SampleError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def image_transform(input_shape: tuple[int, int, int], *, augment: bool) -> Callable[[Image.Image], Tensor]:
    """Return the transform of an RGB image to a normalised tensor [3, H, W].

    Evaluation: the shorter side to 256/224 of the input's longer side, then the centre. Training: a random part of
    the area, mirrored half of the time.
    """
    from torchvision import transforms  # as slow to import as torch itself: only where images are read from files

    _, height, width = input_shape
    if augment:
        placed: list[Callable] = [transforms.RandomResizedCrop((height, width)), transforms.RandomHorizontalFlip()]
    else:
        shorter = round(max(height, width) * 256 / 224)
        placed = [transforms.Resize(shorter), transforms.CenterCrop((height, width))]
    return transforms.Compose([*placed, transforms.ToTensor(), transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD)])


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
            return image.convert("RGB")
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise SampleError(f"cannot be decoded: {' '.join(str(error).split())}", where) from error
