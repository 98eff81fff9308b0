"""Images as bytes, their normalisation, and the interface of data sets that deliver them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol, TypeGuard

import numpy as np
import PIL
import torch
from PIL import features
from torch import Tensor

_IN_CACHE = 2**21
"""Bytes of float images that are normalised at once on a CPU: about what its second-level cache holds."""


class PixelDataset(Protocol):
    """A map-style data set that delivers its images as bytes, before they are normalised.

    Batches of it travel as bytes, and are normalised on the device.
    """

    def pixels(self, index: int) -> tuple[Tensor, int]:
        """Return an image uint8 [C, H, W], resized and cropped, and its class.

        Raises:
            SampleError: When the image cannot be read or decoded.
            DataError: When the data set is malformed, or cannot be reached.
        """

    def normalise(self, pixels: Tensor) -> Tensor:
        """Return network inputs float32 [N, C, H, W] for pixels uint8 [N, C, H, W], on the same device."""


class StampedDataset(PixelDataset, Protocol):
    """A data set whose decoded images can be kept, since it says what they depend on."""

    preparation: str
    """Everything besides the files that decides on an image's bytes: sizes, interpolation, the decoder's version."""

    def __len__(self) -> int:
        """Return the number of samples."""

    def where(self, index: int) -> str:
        """Return where a sample lies."""

    def stamps(self, indices: np.ndarray) -> np.ndarray | None:
        """Return uint64 [N]: a digest of each sample's place and version, such as its file's path, size and times.

        A sample whose content changes gets another stamp. None: the versions of samples are unknown.
        """


def delivers_pixels(dataset: Any) -> TypeGuard[PixelDataset]:
    """Return whether a data set delivers bytes."""
    return hasattr(dataset, "pixels") and hasattr(dataset, "normalise")


def has_stamps(dataset: Any) -> TypeGuard[StampedDataset]:
    """Return whether the decoded images of a data set can be kept."""
    return delivers_pixels(dataset) and hasattr(dataset, "stamps") and hasattr(dataset, "preparation")


def stamp_of(*parts: object) -> int:
    """Return a digest of the parts, 64 bits."""
    words = "\0".join(map(str, parts)).encode(errors="surrogateescape")
    return int.from_bytes(hashlib.blake2b(words, digest_size=8).digest(), "little")


@dataclass(frozen=True)
class Normalization:
    """The conversion of pixels to network inputs: (pixels / scale - mean) / std.

    The results are the same bits on every device. A GPU would multiply by the reciprocal of a number that is not in its
    memory; so `scale` is put there, too.

    Attributes:
        mean: One value a stored channel, or one for all.
        std: One value a stored channel, or one for all.
        scale: The value of a full pixel.
        channels: Channels of the inputs: one stored channel is repeated. None: as many as are stored.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    scale: float = 255.0
    channels: int | None = None

    def __call__(self, pixels: Tensor) -> Tensor:
        """Return inputs float32 [N, C, H, W].

        Args:
            pixels: uint8 [N, C, H, W]; or float32, divided by `scale` already.
        """
        if pixels.device.type == "cpu":
            inputs = self._in_parts(pixels)
        else:
            inputs = self._convert(pixels, torch.empty(pixels.shape, dtype=torch.float32, device=pixels.device))
        if self.channels is not None and inputs.shape[1] != self.channels:
            inputs = inputs.repeat(1, self.channels, 1, 1)
        return inputs

    def _in_parts(self, pixels: Tensor) -> Tensor:
        inputs = torch.empty(pixels.shape, dtype=torch.float32)
        size = max(1, _IN_CACHE // max(1, 4 * pixels[:1].numel()))
        for part, target in zip(pixels.split(size), inputs.split(size), strict=True):
            self._convert(part, target)
        return inputs

    def _convert(self, pixels: Tensor, target: Tensor) -> Tensor:
        scale, mean, std = _constants(self, pixels.device)
        target.copy_(pixels)
        if not pixels.is_floating_point():
            target.div_(scale)
        return target.sub_(mean).div_(std)


@lru_cache(maxsize=64)  # a copy to a GPU would wait, once a batch, for the work before it
def _constants(normalization: Normalization, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    values: Iterable[tuple[float, ...]] = ((normalization.scale,), normalization.mean, normalization.std)
    scale, mean, std = (torch.tensor(each, dtype=torch.float32, device=device).view(-1, 1, 1) for each in values)
    return scale, mean, std


def version_of(file: str | Path) -> tuple[object, ...]:
    """Return what changes when a file on this machine does: its size and times."""
    try:
        found = os.stat(file)
    except OSError as error:
        return "gone", error.errno
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns


def decoder_version() -> str:
    """Return the name and version of the decoder, for `StampedDataset.preparation`."""
    return f"PIL {PIL.__version__}, libjpeg {features.version('jpg')}"
