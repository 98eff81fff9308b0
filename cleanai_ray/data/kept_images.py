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
from cleanai_ray.data.encoded import EncodedDataset
from cleanai_ray.data.filling import fill_at_once
from cleanai_ray.data.jpeg_decoder import JpegDecoder
from cleanai_ray.data.pixels import StampedDataset, has_stamps


@dataclass(frozen=True, kw_only=True, eq=False)
class KeptImages:
    """The decoded images of a split that are kept.

    Attributes:
        dataset: The split.
        images: The file that keeps them.
        room: Returns how many of a number of further images may be added.
        decoder: Decodes many JPEGs at a time; None: they are decoded one by one.
    """

    dataset: StampedDataset
    images: DecodedImages
    room: Callable[[int], int]
    decoder: JpegDecoder | None = None

    def fill(self, indices: np.ndarray, stamps: np.ndarray) -> int:
        """Add as many images as the decoder, if there is one, takes at once; return their number.

        Args:
            indices: Samples that the file lacks, int64 [N].
            stamps: Their versions, uint64 [N].
        """
        if self.decoder is None or not isinstance(self.dataset, EncodedDataset):
            return 0
        return fill_at_once(self.images, self.dataset, self.decoder, indices, stamps)


def kept_images(
    section: CacheSection | None,
    split: Any,
    dataset: Any,
    shape: tuple[int, int, int],
    decoder: JpegDecoder | None = None,
) -> KeptImages | None:
    """Return where the decoded images of a data set are kept; None where they cannot be.

    Args:
        section: The study's `data.cache`.
        split: What tells the split from others, besides its samples' stamps: the data set's name, root and the split's.
        dataset: The split, without augmentation.
        shape: Channels, height and width of its images.
        decoder: What `choose_decoder` returned. Images of different decoders are kept apart.
    """
    if section is None or not has_stamps(dataset) or not len(dataset) or dataset.stamps(np.arange(0)) is None:
        return None
    prepared = dataset.preparation if decoder is None else f"{dataset.preparation} {decoder.name}"
    key = hashlib.sha256(repr((split, prepared, len(dataset), shape)).encode()).hexdigest()[:24]
    folder = DecodedFolder(section)
    images = folder.open(key, len(dataset), shape)
    if images is None:
        return None
    return KeptImages(dataset=dataset, images=images, room=partial(folder.room, images), decoder=decoder)
