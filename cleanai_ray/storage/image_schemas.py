"""Every column of the two Parquet files that keep which image each model gets right.

With them, any two trials can be compared image by image later, on any part of the images, and it can be told which
images decided and which were only reported on.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cleanai_ray.storage.columns import described

IMAGES_FILE = "images.parquet"
CORRECT_FILE = "correct.parquet"

VALIDATION, TEST = "validation", "test"
"""The values of images.parquet's `role`: images that decide which trial is chosen, and images that decide nothing."""

Bits = NDArray[np.bool_]


IMAGES = described(
    (
        "number",
        pa.int64(),
        "Index of the scored image in its split; rows are in the order of correct.parquet's bits.",
    ),
    ("split", pa.string(), "The split."),
    ("role", pa.string(), "validation: the image decides which trial is chosen; test: it decides nothing."),
    ("label", pa.int64(), "Its class, from 0."),
    ("correct_dense", pa.bool_(), "True if the dense model gets it right."),
)

CORRECT = described(
    ("trial_id", pa.string(), "The trial."),
    ("num_images", pa.int64(), "Bits that count: rows of images.parquet."),
    (
        "correct",
        pa.binary(),
        "A bit per row of images.parquet, the first in the highest bit of the first byte (numpy.packbits): 1 if the "
        "model gets the image right after the last stage.",
    ),
    ("scored", pa.binary(), "Bits likewise: 1 if the trial could read the image; null: it read all of them."),
)


def pack(bits: Bits) -> bytes:
    """Return bits [N] as bytes, the first in the highest bit of the first byte."""
    return np.packbits(bits).tobytes()


def unpack(content: bytes, num_bits: int) -> Bits:
    """Return the bits [N] of packed bytes.

    Raises:
        ValueError: When there are fewer bytes than that.
    """
    if 8 * len(content) < num_bits:
        raise ValueError(f"{len(content)} bytes hold {8 * len(content)} bits; needed: {num_bits}")
    return np.unpackbits(np.frombuffer(content, dtype=np.uint8), count=num_bits).astype(bool)


def of_other_split(numbers: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return numbers for images of another split than the evaluated one, from their indices there, or the reverse.

    They are -1 for image 0, -2 for image 1, and so on: no image of the evaluated split has the number of another.
    """
    return -1 - numbers


def roles_of_images(numbers: Iterable[int], validation_share: float | None) -> Bits:
    """Return which images decide which trial is chosen: bits [N], drawn with a fixed seed.

    An image's role depends on its number and the share alone, so it stays the same when more images are scored.

    Args:
        numbers: Indices of the images in their split, [N], or their numbers by `of_other_split`.
        validation_share: Expected share of these images, in [0, 1); None if images of another split decide.
    """
    wanted = np.asarray(list(numbers), dtype=np.int64)
    if validation_share is None:
        return np.asarray(wanted < 0, dtype=np.bool_)
    drawn = np.random.default_rng([_ROLE_SEED]).random(int(wanted.max(initial=-1)) + 1)
    return np.asarray(drawn[wanted] < validation_share, dtype=np.bool_)


_ROLE_SEED = 3
