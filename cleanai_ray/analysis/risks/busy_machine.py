"""Risk: latency that was measured on a busy machine."""

from __future__ import annotations

from collections.abc import Iterator

import polars as pl

from cleanai_ray.analysis.frames import StudyFrames
from cleanai_ray.analysis.numbers import milliseconds, plural, significant
from cleanai_ray.analysis.risks.base import Check, Risk, shorten_list
from cleanai_ray.analysis.speed import BUSY, busy_rows, where_timed
from cleanai_ray.registry import RISKS


@RISKS.register("busy_machine")
class BusyMachine(Check):
    """Timings whose 90th percentile is several medians."""

    position = 75
    looks_for = "latency measured on a busy machine"

    def find(self, study: StudyFrames) -> Iterator[Risk]:
        """Yield one risk; about the best trial where its own timing is among them."""
        busy = busy_rows(study.latency, study.target).sort("busyness", descending=True, maintain_order=True)
        if busy.is_empty():
            return
        trials, where = busy["trial_id"].n_unique(), where_timed(study.target)
        sentence = (
            f"The machine was busy while {plural(trials, 'trial')} {'was' if trials == 1 else 'were'} timed {where}: "
            f"the 90th percentile of a time is up to {significant(busy['busyness'][0], 2)} times its median ({BUSY:g} "
            "times or more counts as busy)."
        )
        lines = [
            f"{row['trial_id']}, {row['variant']}: median {milliseconds(row['latency_ms_p50'])}, 90th percentile "
            f"{milliseconds(row['latency_ms_p90'])}"
            for row in busy.iter_rows(named=True)
        ]
        is_best = study.best is not None and not busy.filter(pl.col("trial_id") == study.best["trial_id"]).is_empty()
        yield Risk("medium", "busy machine", sentence, shorten_list(lines), is_about_best=is_best)
