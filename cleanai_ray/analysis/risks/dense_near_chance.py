"""Risk: a dense model that only guesses."""

from __future__ import annotations

from collections.abc import Iterator

from cleanai_ray.analysis.frames import StudyFrames
from cleanai_ray.analysis.near_chance import is_guessing
from cleanai_ray.analysis.numbers import percent
from cleanai_ray.analysis.risks.base import Check, Risk
from cleanai_ray.registry import RISKS


@RISKS.register("dense_near_chance")
class DenseNearChance(Check):
    """A dense model that is hardly better than guessing."""

    position = 20
    looks_for = "a dense model that only guesses"

    def find(self, study: StudyFrames) -> Iterator[Risk]:
        """Yield a blocking risk where the dense model guesses."""
        dense = study.dense.get("accuracy")
        if dense is None or study.chance is None:
            return
        if is_guessing(dense, round(1 / study.chance), _num_evaluated(study)):
            sentence = (
                f"The dense model itself reaches only {percent(dense)} top-1, where guessing gives "
                f"{percent(study.chance)}: it is not trained for this data, and comparing pruned models means nothing."
            )
            yield Risk("high", "dense near chance", sentence, is_blocking=True)


def _num_evaluated(study: StudyFrames) -> int | None:
    counts = study.results["num_evaluated"].drop_nulls()
    return int(counts[0]) if len(counts) else None
