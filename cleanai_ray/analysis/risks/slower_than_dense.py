"""Risk: pruned models that are slower than the dense one."""

from __future__ import annotations

from collections.abc import Iterator

import polars as pl

from cleanai_ray.analysis.frames import StudyFrames
from cleanai_ray.analysis.numbers import plural, times
from cleanai_ray.analysis.risks.base import Check, Risk, shorten_list
from cleanai_ray.registry import RISKS


@RISKS.register("slower_than_dense")
class SlowerThanDense(Check):
    """A best trial, or else other trials, slower than the dense model at batch 1."""

    position = 60
    looks_for = "speed-up below 1"

    def find(self, study: StudyFrames) -> Iterator[Risk]:
        """Yield one risk: of the best trial, or of the others."""
        timed = study.ok.drop_nulls("speedup")
        slower = timed.filter(pl.col("speedup") < 1)
        best = study.best
        if best is not None and best["speedup"] is not None and best["speedup"] < 1:
            sentence = (
                f"The best trial is slower than the dense model at batch 1: speed-up {times(best['speedup'])} "
                f"({best['latency_ms_b1_p50']:.3g} ms against {best['latency_ms_b1_p50_dense']:.3g} ms)."
            )
            yield Risk("high", "slower than dense", sentence, is_about_best=True)
        elif len(slower):
            lines = [f"{trial_id}: {times(value)}" for trial_id, value in slower.select("trial_id", "speedup").rows()]
            sentence = (
                f"{len(slower)} of {plural(len(timed), 'timed trial')} are slower than the dense model at batch 1."
            )
            yield Risk("medium", "slower than dense", sentence, shorten_list(lines))
