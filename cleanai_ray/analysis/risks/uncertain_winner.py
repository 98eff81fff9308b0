"""Risk: rivals that cannot be told apart from the best trial."""

from __future__ import annotations

from collections.abc import Iterator

from cleanai_ray.analysis.frames import StudyFrames
from cleanai_ray.analysis.intervals import interval_of
from cleanai_ray.analysis.numbers import plural
from cleanai_ray.analysis.risks.base import Check, Risk
from cleanai_ray.registry import RISKS


@RISKS.register("uncertain_winner")
class UncertainWinner(Check):
    """Trials of other methods whose interval overlaps that of the best trial."""

    position = 150
    looks_for = "rivals that cannot be told apart from the best trial"

    def find(self, study: StudyFrames) -> Iterator[Risk]:
        """Yield one risk that counts them and names their methods."""
        best = study.best
        interval = None if best is None else interval_of(best)
        if best is None or interval is None:
            return
        rivals = [
            row
            for row in study.ranked.iter_rows(named=True)
            if row["method"] != best["method"] and (other := interval_of(row)) is not None and other.overlaps(interval)
        ]
        if rivals:
            methods = sorted({row["method"] for row in rivals})
            sentence = (
                f"{plural(len(rivals), 'trial')} of other methods ({', '.join(methods)}) cannot be told apart from the "
                "best: their 95 % intervals overlap."
            )
            yield Risk("info", "uncertainty", sentence)
