"""Risk: speed that was not measured."""

from __future__ import annotations

from collections.abc import Iterator

from cleanai_ray.analysis.frames import StudyFrames
from cleanai_ray.analysis.risks.base import Check, Risk
from cleanai_ray.registry import RISKS


@RISKS.register("not_measured")
class NotMeasured(Check):
    """Latency that was not measured."""

    position = 190
    looks_for = "missing measurements"

    def find(self, study: StudyFrames) -> Iterator[Risk]:
        """Yield one risk."""
        if study.ok.height and not study.ok["latency_ms"].count():
            sentence = "Latency was not measured: nothing is known about the speed of the pruned models."
            yield Risk("info", "not measured", sentence)
