"""Filling of a file of decoded images, many JPEGs at a time."""

from __future__ import annotations

import contextlib
from functools import partial

import numpy as np

from cleanai_ray.data.decoded import DecodedImages
from cleanai_ray.data.encoded import EncodedDataset
from cleanai_ray.data.jpeg_decoder import JpegDecoder, in_threads
from cleanai_ray.data.reading import log_decode
from cleanai_ray.errors import DataError


def fill_at_once(
    images: DecodedImages, dataset: EncodedDataset, decoder: JpegDecoder, indices: np.ndarray, stamps: np.ndarray
) -> int:
    """Decode samples into their slots, those that the decoder takes.

    The others are left: images that it fails at, that cannot be read, or that another process is decoding, and all once
    the disk is full.

    Args:
        images: The file.
        dataset: The split.
        decoder: Decodes the samples that are JPEGs.
        indices: The samples, int64 [N].
        stamps: Their versions, uint64 [N].

    Returns:
        The number of images that were put into the file.
    """
    indices, first = np.unique(indices, return_index=True)
    stamps, number = stamps[first], 0
    with images.claimed(indices, stamps) as claimed, contextlib.suppress(OSError):
        found = [(place, read) for place, read in zip(claimed, _read(dataset, indices[claimed]), strict=True) if read]
        pixels = decoder.pixels(content for _, (content, _) in found)
        for (place, (_, label)), image in zip(found, pixels, strict=True):
            if image is not None:
                index = int(indices[place])
                log_decode(dataset, index)
                images.put(index, int(stamps[place]), image, label)
                number += 1
    return number


def _read(dataset: EncodedDataset, indices: np.ndarray) -> list[tuple[bytes, int] | None]:
    return in_threads(partial(_content, dataset), indices.tolist())


def _content(dataset: EncodedDataset, index: int) -> tuple[bytes, int] | None:
    try:
        return dataset.content(index)
    except (DataError, OSError):
        return None
