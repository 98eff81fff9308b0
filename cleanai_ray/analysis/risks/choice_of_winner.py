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
        """Yield one risk where no images were set aside to report on; with how much that flatters, as simulated."""
        choice = study.choice
        if choice.trial is None or choice.has_test_images or len(study.ok) < 2:
            return
        optimism = choice.optimism
        by_how_much = (
            "expect less on new images"
            if optimism is None
            else f"expect about {optimism:.1f} points less on new images (simulated from its rivals)"
        )
        sentence = (
            f"The best of {len(study.ok)} trials was chosen by the very accuracy that is reported; {by_how_much}. "
            "Set some images aside with evaluation.validation_share."
        )
        yield Risk("info", "choice of the winner", sentence)
