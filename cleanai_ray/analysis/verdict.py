"""The verdict on the chosen trial: acceptable only against a limit that the study states, with its whole interval."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from cleanai_ray.analysis.chosen import Choice
from cleanai_ray.analysis.frames import StudyFrames, as_mapping
from cleanai_ray.analysis.numbers import plural, signed
from cleanai_ray.analysis.risks.base import Risk

Verdict = Literal["acceptable", "with reservations", "no limit stated", "not acceptable"]


def stated_limit(study: StudyFrames) -> float | None:
    """Return the most points that the chosen trial may lose by the study file; None where it sets no such limit."""
    value = as_mapping(study.study.get("recommend")).get("max_accuracy_loss")
    return float(value) if isinstance(value, (int, float)) else None


def judge(study: StudyFrames, risks: Sequence[Risk]) -> tuple[Verdict, tuple[str, ...]]:
    """Return the verdict and its reasons.

    A trial is acceptable if the interval of its loss ends below the stated limit (non-inferiority), and not acceptable
    if it begins above. With the 95 % interval, a trial that loses the limit or more passes 2.5 times in 100.

    Args:
        study: The study.
        risks: Its risks: a blocking one is not acceptable, another one about the chosen trial is a reservation.
    """
    choice, limit = study.choice, stated_limit(study)
    blocking = [risk.sentence for risk in risks if risk.is_blocking]
    reservations = [
        risk.sentence for risk in risks if risk.is_about_best and risk.severity != "info" and not risk.is_blocking
    ]
    if blocking:
        return "not acceptable", (*blocking, *reservations)
    if not choice.is_recommended:
        return "not acceptable", (choice.recommendation.sentence, *choice.recommendation.missing, *reservations)
    if limit is not None:
        compared = _against_limit(choice, limit)
        if compared is None:
            return ("with reservations" if reservations else "acceptable"), tuple(reservations)
        return compared[0], (compared[1], *reservations)
    if reservations:
        return "with reservations", tuple(reservations)
    return "no limit stated", ("The study sets no limit on the accuracy lost (recommend.max_accuracy_loss).",)


def _against_limit(choice: Choice, limit: float) -> tuple[Verdict, str] | None:
    """Return what the interval of the loss says of a limit, in points; None where all of it is within the limit."""
    found = choice.against_dense
    if found is None:
        return "with reservations", "The tables do not hold what a paired interval of the accuracy lost needs."
    flattered = choice.optimism or 0.0
    low, high = (end - flattered for end in found.interval)
    if -low < limit:
        return None
    effect = found.effect - flattered
    interval = f"the change against dense is {signed(effect)} points ({signed(low)} to {signed(high)})"
    interval += f", {flattered:.2f} points taken off for the choice" if flattered else ""
    allowed = f"{signed(-limit)} points are allowed"
    if -high > limit:
        return "not acceptable", f"The loss is beyond the limit: {interval}; {allowed}."
    return "with reservations", (
        f"The loss may be beyond the limit: {interval}; {allowed}. With {plural(found.num_images, 'image')}, a "
        f"difference of "
        f"{found.detectable:.2f} points can be told."
    )
