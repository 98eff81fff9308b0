"""Risk: a run that gave warnings."""

from __future__ import annotations

from collections.abc import Iterator

from cleanai_ray.analysis.frames import StudyFrames
from cleanai_ray.analysis.numbers import plural
from cleanai_ray.analysis.risks.base import Check, Risk, shorten_list
from cleanai_ray.registry import RISKS


@RISKS.register("run_warnings")
class RunWarnings(Check):
    """Warnings of the run as a whole."""

    position = 210
    looks_for = "warnings of the run"

    def find(self, study: StudyFrames) -> Iterator[Risk]:
        """Yield one risk that lists them."""
        warnings = [str(text) for text in study.environment.get("warnings") or []]
        if warnings:
            sentence = f"The run gave {plural(len(warnings), 'warning')}."
            yield Risk("medium", "warnings of the run", sentence, shorten_list(warnings))
