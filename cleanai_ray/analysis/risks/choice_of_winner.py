"""Risk: a winner chosen on the images it is reported on."""

from __future__ import annotations

from collections.abc import Iterator

from cleanai_ray.analysis.frames import StudyFrames
from cleanai_ray.analysis.risks.base import Check, Risk
from cleanai_ray.registry import RISKS


@RISKS.register("choice_of_winner")
class ChoiceOfWinner(Check):
    """A winner that was chosen among several by the accuracy that is reported."""

    position = 160
    looks_for = "how the winner was chosen"

    def find(self, study: StudyFrames) -> Iterator[Risk]:
        """Yield one risk where there are several trials."""
        if len(study.ok) > 1:
            sentence = (
                f"The best of {len(study.ok)} trials was chosen by the very accuracy that is reported; expect slightly "
                "less on new images."
            )
            yield Risk("info", "choice of the winner", sentence)
