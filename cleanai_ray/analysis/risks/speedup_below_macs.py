"""Risk: MACs saved that save no time."""

from __future__ import annotations

from collections.abc import Iterator

from cleanai_ray.analysis.frames import StudyFrames
from cleanai_ray.analysis.numbers import times
from cleanai_ray.analysis.risks.base import Check, Risk
from cleanai_ray.analysis.speed import where_timed
from cleanai_ray.registry import RISKS


@RISKS.register("speedup_below_macs")
class SpeedupBelowMacs(Check):
    """A best trial that is not slower, but faster by less than half of what its MACs promise."""

    position = 70
    looks_for = "speed-up far below the saving of MACs"

    def find(self, study: StudyFrames) -> Iterator[Risk]:
        """Yield one risk of the best trial."""
        best = study.best
        if best is None or best["speedup"] is None or not best["macs_share"]:
            return
        saving = 1 / best["macs_share"]
        if saving > 1.1 and not best["is_slower"] and best["speedup"] < 1 + 0.5 * (saving - 1):
            sentence = (
                f"The speed-up of the best trial {where_timed(study.target)}, {times(best['speedup'])}, is far below "
                f"what its MACs promise ({times(saving)} fewer)."
            )
            yield Risk("medium", "speed-up below MACs", sentence, is_about_best=True)
