"""The decoded images of a split, kept on the node so that all that reads them decodes each once."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from cleanai_ray.config.images import CacheSection
from cleanai_ray.data.decoded import DecodedImages
from cleanai_ray.data.decoded_folder import DecodedFolder
from cleanai_ray.data.pixels import StampedDataset, has_stamps


@dataclass(frozen=True, kw_only=True, eq=False)
class KeptImages:
    """The decoded images of a split that are kept.

    Attributes:
        dataset: The split.
        images: The file that keeps them.
        room: Returns how many of a number of further images may be added.
    """

    dataset: StampedDataset
    images: DecodedImages
    room: Callable[[int], int]


def kept_images(
    section: CacheSection | None, split: Any, dataset: Any, shape: tuple[int, int, int]
) -> KeptImages | None:
    """Return where the decoded images of a data set are kept; None where they cannot be.

    Args:
        section: The study's `data.cache`.
        split: What tells the split from others, besides its samples' stamps: the data set's name, root and the split's.
        dataset: The split, without augmentation.
        shape: Channels, height and width of its images.
    """
    if section is None or not has_stamps(dataset) or not len(dataset) or dataset.stamps(np.arange(0)) is None:
        return None
    key = hashlib.sha256(repr((split, dataset.preparation, len(dataset), shape)).encode()).hexdigest()[:24]
    folder = DecodedFolder(section)
    images = folder.open(key, len(dataset), shape)
    return None if images is None else KeptImages(dataset=dataset, images=images, room=partial(folder.room, images))
