"""Differences of two methods image by image, from the images that each of their trials gets right."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import polars as pl
from numpy.typing import NDArray

from cleanai_ray.analysis.estimates import ImageMeans
from cleanai_ray.analysis.frames import StudyFrames
from cleanai_ray.analysis.image_evidence import mask_of
from cleanai_ray.storage.image_schemas import pack, unpack

DENSE = "dense"
"""The name of the dense model among the trials."""


class ImageHits:
    """The images of the split that is reported on which the trials of a study, and its dense model, get right.

    Args:
        study: The study.
    """

    def __init__(self, study: StudyFrames) -> None:
        count = len(study.images)
        rows = study.correct.filter((pl.col("num_images") == count) & pl.col("scored").is_null())
        self._part = mask_of(study, None)
        self.num_images = int(self._part.sum())
        self._bits = dict(rows.select("trial_id", "correct").rows())
        if self._bits:
            self._bits[DENSE] = pack(study.images["correct_dense"].to_numpy())

    @classmethod
    def of(cls, studies: Mapping[str, StudyFrames]) -> ImageHits | None:
        """Return the images of the only study; None where there are several, or where single images were not kept.

        Images of several studies need not be the same, and nothing can be crossed with them.
        """
        (study, *others) = studies.values()
        found = None if others else cls(study)
        return found if found is not None and found._bits else None

    def mean(self, trial_ids: Sequence[str]) -> NDArray[np.float32] | None:
        """Return the share of trials that get each image right, in points, [N]; None where one is not known."""
        if any(name not in self._bits for name in trial_ids):
            return None
        total = np.zeros(self.num_images, dtype=np.float32)
        for name in trial_ids:
            total += unpack(self._bits[name], len(self._part))[self._part]
        return total * np.float32(100 / len(trial_ids))


def image_means(pairs: pl.DataFrame, units: Sequence[str], hits: ImageHits) -> ImageMeans | None:
    """Return the differences of pairs image by image; None where not all are known, or a cell lacks a draw.

    Args:
        pairs: A row per pair, with `units`, `replicate`, and the trials of both sides: `trial_id`, `trial_id_second`.
        units: Columns that make a cell.
        hits: The images that each trial gets right.
    """
    if pairs.is_empty():
        return None
    cells = pairs.select(pl.struct(list(units)).rank("dense").cast(pl.Int64) - 1).to_series().to_list()
    draws = pairs.select(pl.col("replicate").fill_null(-1).rank("dense").cast(pl.Int64) - 1).to_series().to_list()
    counts = np.zeros((max(cells) + 1, max(draws) + 1))
    np.add.at(counts, (cells, draws), 1)
    if not (counts == counts[0, 0]).all():
        return None
    by_draw = np.zeros((counts.shape[1], hits.num_images))
    by_cell = np.zeros((counts.shape[0], hits.num_images))
    for cell, draw, first, second in zip(cells, draws, pairs["trial_id"], pairs["trial_id_second"], strict=True):
        own, other = hits.mean(list(first)), hits.mean(list(second))
        if own is None or other is None:
            return None
        by_draw[draw] += own - other
        by_cell[cell] += own - other
    return ImageMeans(by_draw / (len(pairs) / len(by_draw)), by_cell / (len(pairs) / len(by_cell)))
