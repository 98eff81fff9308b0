"""A split for images that come without one: some of each class are held out, the same ones each time."""

from __future__ import annotations

import zlib

import numpy as np

from cleanai_ray.data.image_index import ImageIndex

ONE_IN = 5
"""One image in this many is held out."""


def held_out(index: ImageIndex) -> np.ndarray:
    """Return which images are held out, bool [N].

    Of each class these are a fifth, rounded up but never all, with the lowest checksums of their names. So the choice
    depends on the names in the class alone, and not on how the folder is called or in which order it is listed.

    Args:
        index: All images; their names begin with the folder that holds the classes.
    """
    names = [name.as_py().partition(b"/")[2] for name in index.names]
    order = sorted(range(len(names)), key=lambda place: (index.labels[place], zlib.crc32(names[place]), names[place]))
    counts = np.bincount(index.labels) if len(index) else np.zeros(0, dtype=int)
    wanted = np.minimum(-(-counts // ONE_IN), np.maximum(counts - 1, 0))
    chosen = np.zeros(len(index), dtype=bool)
    for begin, number in zip(np.cumsum(counts) - counts, wanted, strict=True):
        chosen[order[begin : begin + number]] = True
    return chosen


def part_of(index: ImageIndex, *, is_held_out: bool) -> ImageIndex:
    """Return the images that are held out, or the others, in their order."""
    places = np.flatnonzero(held_out(index) == is_held_out)
    return ImageIndex(index.names.take(places), index.labels[places])
