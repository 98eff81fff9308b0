"""Risk: channels of the dense model that never change."""

from __future__ import annotations

from collections.abc import Iterator

import polars as pl

from cleanai_ray.analysis.frames import StudyFrames
from cleanai_ray.analysis.numbers import percent, plural
from cleanai_ray.analysis.risks.base import Check, Risk
from cleanai_ray.registry import RISKS


@RISKS.register("dead_channels")
class DeadChannels(Check):
    """Observed channels whose activation is the same on every calibration sample."""

    position = 220
    looks_for = "dead channels"

    def find(self, study: StudyFrames) -> Iterator[Risk]:
        """Yield one risk that counts them."""
        frame = study.coverage.unique(["layer", "side", "channel"]) if study.coverage.height else study.coverage
        dead = frame.filter(pl.col("maximum") == pl.col("minimum"))
        if len(dead):
            share = len(dead) / len(frame)
            sentence = (
                f"{plural(len(dead), 'observed channel')} of the dense model ({percent(share)}) never change on the "
                "calibration samples: either they are superfluous or the samples do not exercise them."
            )
            yield Risk("info", "dead channels", sentence)
