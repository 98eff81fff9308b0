"""Risk: too few evaluated images."""

from __future__ import annotations

from collections.abc import Iterator

from cleanai_ray.analysis.frames import StudyFrames
from cleanai_ray.analysis.intervals import interval_of
from cleanai_ray.analysis.numbers import percent, plural
from cleanai_ray.analysis.risks.base import Check, Risk
from cleanai_ray.analysis.score_words import is_counted
from cleanai_ray.registry import RISKS

WIDE_INTERVAL = 0.02
"""Half the width of a 95 % interval, as a fraction, from which too few images were evaluated."""


@RISKS.register("few_images")
class FewImages(Check):
    """An accuracy of the best trial that rests on too few images."""

    position = 140
    looks_for = "too few evaluated images"

    def find(self, study: StudyFrames) -> Iterator[Risk]:
        """Yield a risk where its interval is wide or cannot be given."""
        best = study.best
        if best is None:
            return
        interval = interval_of(best)
        if interval is None:
            sentence = "The number of evaluated images was not recorded, so accuracies have no intervals."
            if not is_counted(best):
                sentence = "This score is no share of right answers, so that no interval is given of it."
            yield Risk("info", "uncertainty", sentence)
        elif (interval.high - interval.low) / 2 > WIDE_INTERVAL:
            sentence = (
                f"Only {plural(best['num_evaluated'], 'image')} {'was' if best['num_evaluated'] == 1 else 'were'} "
                "evaluated: the accuracy of the best trial lies between "
                f"{100 * interval.low:.1f} and {percent(interval.high)} (95 % interval)."
            )
            yield Risk("medium", "few images", sentence, is_about_best=True)
