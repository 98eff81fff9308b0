"""The choice of a decoder for a data set's JPEGs: a GPU's where it gives what the CPU's gives."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import torch
from PIL import Image
from torch import Tensor

from cleanai_ray.data.encoded import EncodedDataset
from cleanai_ray.data.jpeg_decoder import Decode, JpegDecoder, decoded_bytes, own_stream
from cleanai_ray.data.transforms import decode_image
from cleanai_ray.errors import DataError
from cleanai_ray.nn.notices import inform

ALLOWED_DIFFERENCE = 1.0
"""Grey levels by which a decoder's images may differ from those of the CPU's decoder, on average."""

_NUM_COMPARED, _NUM_SEARCHED = 8, 64


def choose_decoder(setting: Literal["auto", "cpu"], dataset: Any, device: torch.device) -> JpegDecoder | None:
    """Return the decoder of a data set's JPEGs for a device; None where its images are decoded on the CPU, one by one.

    For `auto` on CUDA, it is nvJPEG, if its images of the first few JPEGs are within `ALLOWED_DIFFERENCE` of the CPU's.
    They are resized on the device if they are within it then, too. A process chooses once for each preprocessing.

    Args:
        setting: `data.decoder`.
        dataset: A split, without augmentation.
        device: Where this process computes.
    """
    if setting == "cpu" or not isinstance(dataset, EncodedDataset):
        return None
    key = os.getpid(), dataset.preparation, str(device)
    if key not in _chosen:
        found = _decoder_on(device)
        _chosen[key] = None if found is None else _agreeing(found[0], found[1], dataset, device)
    return _chosen[key]


_chosen: dict[tuple[int, str, str], JpegDecoder | None] = {}
"""The choices of a process, by its number, the preprocessing and the device."""


def _decoder_on(device: torch.device) -> tuple[str, Decode] | None:
    """Return the decoder of a kind of device, and its name; None if it has none."""
    return ("nvJPEG", partial(_by_nvjpeg, device)) if device.type == "cuda" else None


def _by_nvjpeg(device: torch.device, contents: Sequence[bytes]) -> Sequence[Tensor]:
    from torchvision.io import ImageReadMode, decode_jpeg  # slow to import

    buffers = [torch.frombuffer(bytearray(content), dtype=torch.uint8) for content in contents]
    return decode_jpeg(buffers, mode=ImageReadMode.RGB, device=device)  # type: ignore[return-value]


def _agreeing(name: str, decode: Decode, dataset: EncodedDataset, device: torch.device) -> JpegDecoder | None:
    """Return a decoder whose images are the CPU's but for rounding; None, and a notice, where they are not."""
    contents = _first_jpegs(dataset)
    if not contents:
        return None
    images = [decode_image(content, "") for content in contents]
    steps = dataset.preprocessing
    decoder = JpegDecoder(name=_version(name), decode=decode, device=device, preprocessing=steps)
    try:
        with own_stream(device):
            decoded = [image.cpu() for image in decode(contents)]
        apart = _difference(decoded, [_bytes_of(image) for image in images])
        if apart > ALLOWED_DIFFERENCE:
            _tell(f"those of {name} differ by {apart:.1f} grey levels on average; allowed: {ALLOWED_DIFFERENCE:g}")
            return None
        prepared = [steps.pixels(image) for image in images]
        if _difference(decoder.prepare(contents), prepared) > ALLOWED_DIFFERENCE:
            decoder = replace(decoder, resizes=False, name=f"{decoder.name}, resized by the CPU")
            decoder.prepare(contents)
    except Exception as error:  # the driver, the library and the memory may each fail in their own way
        _tell(f"{name} failed: {' '.join(str(error).split())[:200]}")
        return None
    return decoder


def _first_jpegs(dataset: EncodedDataset) -> list[bytes]:
    """Return the first suitable JPEGs of a data set, a few."""
    found: list[bytes] = []
    for index in range(min(len(dataset), _NUM_SEARCHED)):
        with contextlib.suppress(DataError, OSError):  # whoever reads the sample for its own sake will say so
            content = dataset.content(index)[0]
            if decoded_bytes(content):
                found.append(content)
        if len(found) == _NUM_COMPARED:
            break
    return found


def _difference(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """Return the mean over images of their mean absolute difference, in grey levels; infinity for other sizes."""
    pairs = list(zip(found, expected, strict=True))
    if any(one.shape != other.shape for one, other in pairs):
        return float("inf")
    apart = [(one.float() - other.float()).abs().mean() for one, other in pairs]
    return float(torch.stack(apart).mean())


def _bytes_of(image: Image.Image) -> Tensor:
    from torchvision.transforms import functional

    return functional.pil_to_tensor(image)


def _tell(reason: str) -> None:
    inform(f"JPEGs are decoded by the CPU: {reason}")


def _version(name: str) -> str:
    import torchvision

    return f"{name} of torchvision {torchvision.__version__}"
