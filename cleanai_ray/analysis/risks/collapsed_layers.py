"""Risk: layers that lost nearly all of their channels."""

from __future__ import annotations

from collections.abc import Iterator

import polars as pl

from cleanai_ray.analysis.frames import StudyFrames
from cleanai_ray.analysis.numbers import percent, plural
from cleanai_ray.analysis.risks.base import Check, Risk, shorten_list
from cleanai_ray.registry import RISKS

COLLAPSED = 0.85
"""A layer that lost more than this share of its channels counts as collapsed."""


@RISKS.register("collapsed_layers")
class CollapsedLayers(Check):
    """Layers that lost more than `COLLAPSED` of their channels."""

    position = 80
    looks_for = "collapsed layers"

    def find(self, study: StudyFrames) -> Iterator[Risk]:
        """Yield a risk of the best trial, and one of all others."""
        lost = 1 - pl.col("out_channels") / pl.col("out_channels_dense")
        collapsed = study.layers.filter(lost > COLLAPSED)
        if study.best is None or collapsed.is_empty():
            return
        own = collapsed.filter(pl.col("trial_id") == study.best["trial_id"])
        if len(own):
            rows = own.select("layer", "out_channels", "out_channels_dense").rows()
            lines = shorten_list([f"{layer}: {kept} of {dense} channels kept" for layer, kept, dense in rows])
            sentence = (
                f"The best trial lost more than {percent(COLLAPSED, 0)} of the channels of {plural(len(own), 'layer')}."
            )
            yield Risk("medium", "collapsed layers", sentence, lines, is_about_best=True)
        others = collapsed.filter(pl.col("trial_id") != study.best["trial_id"])["trial_id"].n_unique()
        if others:
            sentence = (
                f"{plural(others, 'other trial')} lost more than {percent(COLLAPSED, 0)} of the channels of a layer."
            )
            yield Risk("info", "collapsed layers", sentence)
