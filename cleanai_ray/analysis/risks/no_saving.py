"""Risk: a best trial that is no smaller than the dense model."""

from __future__ import annotations

from collections.abc import Iterator

from cleanai_ray.analysis.frames import StudyFrames
from cleanai_ray.analysis.numbers import percent
from cleanai_ray.analysis.risks.base import Check, Risk
from cleanai_ray.registry import RISKS


@RISKS.register("no_saving")
class NoSaving(Check):
    """A best trial that keeps nearly all MACs and parameters."""

    position = 50
    looks_for = "models that are no smaller"

    def find(self, study: StudyFrames) -> Iterator[Risk]:
        """Yield a blocking risk where more than 99 % of both are kept."""
        best = study.best
        if best is None or best["macs_share"] is None or best["params_share"] is None:
            return
        if best["macs_share"] > 0.99 and best["params_share"] > 0.99:
            sentence = (
                f"The best trial keeps {percent(best['macs_share'])} of the MACs and {percent(best['params_share'])} "
                "of the parameters: pruning saved nothing."
            )
            yield Risk("high", "no saving", sentence, is_about_best=True, is_blocking=True)
