"""Risk: pruned models that are slower than the dense one."""

from __future__ import annotations

from collections.abc import Iterator

import polars as pl

from cleanai_ray.analysis.frames import StudyFrames
from cleanai_ray.analysis.intervals import speedup_of
from cleanai_ray.analysis.numbers import milliseconds, plural
from cleanai_ray.analysis.risks.base import Check, Risk, shorten_list
from cleanai_ray.analysis.speed import where_timed
from cleanai_ray.registry import RISKS


@RISKS.register("slower_than_dense")
class SlowerThanDense(Check):
    """Trials that are slower than the dense model, with their whole interval where there is one."""

    position = 60
    looks_for = "speed-up below 1"

    def find(self, study: StudyFrames) -> Iterator[Risk]:
        """Yield one risk of all slower trials; it names the best one's times if that is among them."""
        timed = study.ok.drop_nulls("speedup")
        slower, where, best = timed.filter(pl.col("is_slower")), where_timed(study.target), study.best
        if slower.is_empty():
            return
        verb = "is" if len(slower) == 1 else "are"
        sentence = f"{len(slower)} of {plural(len(timed), 'timed trial')} {verb} slower than the dense model {where}."
        is_best = best is not None and bool(best["is_slower"])
        if best is not None and is_best:
            sentence = (
                f"The best trial is slower than the dense model {where}: speed-up {speedup_of(best)} "
                f"({milliseconds(best['latency_ms'])} against {milliseconds(best['latency_ms_dense'])})."
            )
            others = len(slower) - 1
            sentence += f" So {'is' if others == 1 else 'are'} {plural(others, 'other trial')}." if others else ""
        lines = [f"{trial['trial_id']}: {speedup_of(trial)}" for trial in slower.iter_rows(named=True)]
        yield Risk("high", "slower than dense", sentence, shorten_list(lines), is_about_best=is_best)
