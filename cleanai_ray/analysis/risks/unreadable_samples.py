"""Risk: samples that could not be read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from cleanai_ray.analysis.frames import StudyFrames
from cleanai_ray.analysis.numbers import plural
from cleanai_ray.analysis.risks.base import Check, Risk
from cleanai_ray.registry import RISKS


@RISKS.register("unreadable_samples")
class UnreadableSamples(Check):
    """Samples that were left out because they could not be decoded."""

    position = 230
    looks_for = "samples that could not be read"

    def find(self, study: StudyFrames) -> Iterator[Risk]:
        """Yield one risk that lists all of them."""
        found = study.environment.get("unreadable_samples")
        if not isinstance(found, Mapping) or not found:
            return
        skipped = plural(len(found), "sample")
        sentence = (
            f"{skipped} could not be read and {'was' if len(found) == 1 else 'were'} left out (data.skip_unreadable)."
        )
        lines = tuple(f"{where}: {' '.join(str(reason).split())}" for where, reason in sorted(found.items()))
        yield Risk("medium", "unreadable samples", sentence, lines)
