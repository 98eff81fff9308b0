"""A split for images that come without one: some of each class are held out, the same ones each time."""

from __future__ import annotations

import zlib

import numpy as np

from cleanai_ray.data.image_index import ImageIndex

ONE_IN = 5
"""About one image in this many is held out."""


def held_out(index: ImageIndex) -> np.ndarray:
    """Return which images are held out, bool [N].

    These are the images whose checksum is a multiple of five, about a fifth: CRC-32 of the name, from the folder of the
    class on. So new images move none of the old ones, whatever the folder is called and however it is listed.

    Of a class of two images or more, one is held out at least, that with the lowest checksum, and one is not, that with
    the highest.

    Args:
        index: All images; their names begin with the folder that holds the classes.
    """
    names = [name.as_py().partition(b"/")[2] for name in index.names]
    sums = np.array([zlib.crc32(name) for name in names], dtype=np.int64)
    chosen = sums % ONE_IN == 0
    for label in np.unique(index.labels):
        places = sorted(np.flatnonzero(index.labels == label), key=lambda place: (sums[place], names[place]))
        if chosen[places].all():
            chosen[places[-1]] = False
        elif not chosen[places].any() and len(places) > 1:
            chosen[places[0]] = True
    return chosen


def part_of(index: ImageIndex, *, is_held_out: bool) -> ImageIndex:
    """Return the images that are held out, or the others, in their order."""
    places = np.flatnonzero(held_out(index) == is_held_out)
    return ImageIndex(index.names.take(places), index.labels[places])
