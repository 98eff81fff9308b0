"""Risk: files that the run directory lacks."""

from __future__ import annotations

from collections.abc import Iterator

from cleanai_ray.analysis.frames import StudyFrames
from cleanai_ray.analysis.risks.base import Check, Risk
from cleanai_ray.registry import RISKS


@RISKS.register("missing_files")
class MissingFiles(Check):
    """Files that the run directory lacks."""

    position = 200
    looks_for = "missing files"

    def find(self, study: StudyFrames) -> Iterator[Risk]:
        """Yield one risk that names them."""
        if study.missing:
            names = ", ".join(study.missing)
            yield Risk(
                "info", "missing files", f"The run directory lacks {names}; the report leaves out what they would show."
            )
