"""Decoding of many JPEGs at a time, by a decoder that may be a GPU's."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from cleanai_ray.data.transforms import Preprocessing
from cleanai_ray.nn.faults import is_out_of_memory, release_memory

Decode = Callable[[Sequence[bytes]], Sequence[Tensor]]
"""From JPEGs to their images, uint8 [3, height, width] on a device. An error comes without any of them."""

_DECODED_BYTES = 2**27
"""Memory of decoded images that are on the device at once."""
_THREADS = 8
_RGB_COMPONENTS = tuple(b"RGB")
"""Names of the components of a JPEG that holds red, green and blue; the usual ones are luminance and chrominance."""


@dataclass(frozen=True, kw_only=True, eq=False)
class JpegDecoder:
    """A decoder of many JPEGs at a time, and what makes a network's images of what it decodes.

    Attributes:
        name: Its name and version, which kept images depend on.
        decode: The decoder.
        device: Where it leaves its images.
        preprocessing: Resizing and cropping.
        resizes: True if images are resized on the device, False if the CPU does it as it always does.
    """

    name: str
    decode: Decode
    device: torch.device
    preprocessing: Preprocessing
    resizes: bool = True

    def pixels(self, contents: Iterable[bytes]) -> list[Tensor | None]:
        """Return images as a network sees them before they are normalised, uint8 [3, H, W] on the CPU.

        Args:
            contents: Encoded images. For those that are no whole JPEG in the usual colours, or that the decoder
                fails at, None is returned: the CPU decodes them, or says what is wrong with them.
        """
        encoded = list(contents)
        found: list[Tensor | None] = [None] * len(encoded)
        for places in _parts([decoded_bytes(content) for content in encoded]):
            prepared = self._prepared([encoded[place] for place in places])
            for place, image in zip(places, prepared, strict=True):
                found[place] = image
        return found

    def _prepared(self, contents: list[bytes]) -> list[Tensor | None]:
        """Return the images of suitable JPEGs; after an error, one half after the other is tried."""
        try:
            return list(self.prepare(contents))
        except RuntimeError as error:
            is_full = is_out_of_memory(error)
        if is_full:
            release_memory(self.device)
        half = len(contents) // 2
        return [None] if not half else [*self._prepared(contents[:half]), *self._prepared(contents[half:])]

    def prepare(self, contents: Sequence[bytes]) -> Sequence[Tensor]:
        """Return the images of JPEGs as `pixels` does, of all or of none.

        Raises:
            RuntimeError: When the decoder fails at one of them.
        """
        with own_stream(self.device):
            # Copies to the CPU wait for the stream: only then may the decoder, on a stream of its own, take the memory
            # of these images for the next ones.
            decoded = self.decode(contents)
            if self.resizes:
                return list(torch.stack([self.preprocessing.pixels(image) for image in decoded]).cpu())
            decoded = [image.cpu() for image in decoded]
        return in_threads(self._resized, decoded)

    def _resized(self, image: Tensor) -> Tensor:
        return self.preprocessing.pixels(Image.fromarray(image.permute(1, 2, 0).numpy()))


def in_threads(work: Callable[[Any], Any], values: Iterable[Any]) -> list[Any]:
    """Return what a function that reads files, or does its work in C, returns for each of the values."""
    with ThreadPoolExecutor(_THREADS) as threads:
        return list(threads.map(work, values))


def decoded_bytes(content: bytes) -> int:
    """Return the size of an image once it is decoded; 0 if another decoder than the CPU's might not tell what it is.

    A decoder on a GPU may fill up a file that was cut off, and take grey, inverted or unconverted colours for others.
    """
    try:
        with Image.open(io.BytesIO(content)) as image:
            components = tuple(part[0] for part in getattr(image, "layer", ()))
            if image.format != "JPEG" or image.mode != "RGB" or image.info.get("adobe_transform", 1) != 1:
                return 0
            is_whole = content.rstrip(b"\0").endswith(b"\xff\xd9")
            return 3 * image.width * image.height if is_whole and components != _RGB_COMPONENTS else 0
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError):
        return 0


def _parts(sizes: Sequence[int]) -> Iterable[list[int]]:
    """Yield the places of suitable images in parts that fit into the memory together."""
    part: list[int] = []
    total = 0
    for place, size in enumerate(sizes):
        if part and size and total + size > _DECODED_BYTES:
            yield part
            part, total = [], 0
        if size:
            part.append(place)
            total += size
    if part:
        yield part


def own_stream(device: torch.device) -> AbstractContextManager[Any]:
    """Return a context in which work does not queue behind that of the model; it makes the device the current one."""
    return torch.cuda.stream(_stream(device)) if device.type == "cuda" else contextlib.nullcontext()


@lru_cache(maxsize=8)
def _stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)
