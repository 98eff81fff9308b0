"""Risk: a study without random pruning."""

from __future__ import annotations

from collections.abc import Iterator

from cleanai_ray.analysis.frames import StudyFrames
from cleanai_ray.analysis.method_ranks import CONTROL
from cleanai_ray.analysis.risks.base import Check, Risk
from cleanai_ray.registry import RISKS


@RISKS.register("no_control")
class NoControl(Check):
    """A study that lacks random pruning as a control."""

    position = 120
    looks_for = "a missing control"

    def find(self, study: StudyFrames) -> Iterator[Risk]:
        """Yield one risk."""
        if len(study.ok) and CONTROL not in study.methods:
            sentence = (
                "The study has no random pruning as a control: it cannot show that its methods are better than chance."
            )
            yield Risk("info", "no control", sentence)
