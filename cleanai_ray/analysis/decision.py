"""The words that a decision rests on: how sure the recommendation is, and what would change it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import polars as pl

from cleanai_ray.analysis.chosen import CONFIGURATION, Choice
from cleanai_ray.analysis.class_changes import ClassChange, class_changes
from cleanai_ray.analysis.comparisons import ALPHA
from cleanai_ray.analysis.frames import StudyFrames
from cleanai_ray.analysis.numbers import MINUS, counted, p_text, percent, signed
from cleanai_ray.analysis.paired import PairedDifference
from cleanai_ray.analysis.score_words import compared_text
from cleanai_ray.analysis.verdict import stated_limit
from cleanai_ray.analysis.wording import describe_trial

MOST_IMAGES = 1_000_000
"""Beyond so many images, the number that would tell a difference is not written out."""


@dataclass(frozen=True)
class Decision:
    """Sentences for whoever decides; either may be empty.

    Attributes:
        sureness: What is known of the chosen trial, with intervals, and what may be chance.
        changes: What would lead to another recommendation.
    """

    sureness: tuple[str, ...]
    changes: tuple[str, ...]


def weigh(study: StudyFrames) -> Decision:
    """Return how sure the recommendation of a study is, and what would change it."""
    choice = study.choice
    if choice.trial is None:
        return Decision((), ())
    sureness = (_against_dense(choice), _against_runner_up(choice), _replicates(study, choice))
    of_classes = _of_classes(class_changes(study))
    changes = (_limit(study), _runner_up(choice), _more_images(choice), _speed(study), _elsewhere(study))
    return Decision((*filter(None, sureness), *of_classes), tuple(filter(None, changes)))


def _of_classes(found: tuple[ClassChange, ...]) -> tuple[str, ...]:
    """Tell the class that lost most, or that none did; nothing where no class is known."""
    if not found:
        return ()
    worst = found[0]
    if not worst.has_fallen:
        return ("No class lost accuracy.",)
    return (f"The class that fares worst: {worst.sentence[0].lower()}{worst.sentence[1:]}",)


def _images(choice: Choice, count: int) -> str:
    which = "test images, which decided nothing" if choice.has_test_images else "images that also chose it"
    return f"On the {count} {which}" if count != 1 else f"On the one {which.replace('images', 'image', 1)}"


def _against_dense(choice: Choice) -> str:
    found, trial = choice.against_dense, choice.trial
    assert trial is not None
    if found is None:
        return (
            "Single images were not kept, so it is not known if the difference from the dense model is chance."
            if trial["loss_points"] is not None
            else ""
        )
    if not found.lost and not found.gained:
        same = "it gets the same images right as the dense model"
        return f"{_images(choice, found.num_images)}, {same}. {_could_tell(found)}"
    counts = (
        f"{_images(choice, found.num_images)}, it gets {found.lost} wrong that the dense model gets right, and "
        f"{found.gained} right that the dense model gets wrong: {_interval(found)}"
    )
    return f"{counts}. {_told(found, 'That is more than chance explains', 'That may be chance')}"


def _interval(found: PairedDifference) -> str:
    low, high = found.interval
    return f"{signed(found.effect)} points (95 % interval {signed(low)} to {signed(high)}, {p_text(found.p_value)})"


def _told(found: PairedDifference, beyond_doubt: str, open_: str) -> str:
    """Return one of two sentences; that for a difference that may be chance also says what could have been told."""
    if found.p_value < ALPHA:
        return f"{beyond_doubt}."
    if not found.effect:
        return f"No difference is seen. {_could_tell(found)}"
    return f"{open_}: a difference from {found.detectable:.2f} points on would be found four times in five."


def _could_tell(found: PairedDifference) -> str:
    return f"A difference from {found.detectable:.2f} points on would be found four times in five."


def _against_runner_up(choice: Choice) -> str:
    found, other = choice.against_runner_up, choice.recommendation.runner_up
    if other is None:
        return ""
    name = f"the runner-up by the same rule, {describe_trial(other)}"
    if found is None:
        return f"Single images were not kept, so it is not known if it differs from {name}, beyond chance."
    told = _told(found, "They differ beyond chance", "Which of the two is more accurate cannot be told")
    return f"Against {name}: {_interval(found)}. {told}"


def _replicates(study: StudyFrames, choice: Choice) -> str:
    """Say how far trials that differ in seed or draw alone lie apart."""
    trial = choice.trial
    assert trial is not None
    if choice.num_replicates < 2:
        return (
            "It is a single trial: what another seed, or another draw of calibration images, would change is unknown."
        )
    same = [pl.col(name).eq_missing(pl.lit(trial[name], dtype=study.ok.schema[name])) for name in CONFIGURATION]
    own = study.ok.filter(*same)["accuracy"]
    low, high = own.min(), own.max()
    assert isinstance(low, float)
    assert isinstance(high, float)
    return (
        f"The {choice.num_replicates} trials that differ from it in seed or draw alone, itself included, reach "
        f"{compared_text(trial, low)} to {percent(high)}."
    )


def _limit(study: StudyFrames) -> str:
    limit = stated_limit(study)
    if limit is not None:
        return (
            f"Another limit: the study allows a loss of {counted(f'{limit:g}', 'point')} (recommend.max_accuracy_loss)."
        )
    return (
        "A limit: the study states none on the accuracy lost (recommend.max_accuracy_loss). With one, the cheapest "
        "trial within it would be taken."
    )


def _runner_up(choice: Choice) -> str:
    other = choice.recommendation.runner_up
    if other is None:
        return ""
    lost = "" if other["loss_points"] is None else f" ({signed(-other['loss_points'])} points against dense)"
    speed = "" if other["speedup"] is None else f" and {other['speedup']:.2f} times the speed"
    cost = "" if other["macs_share"] is None else f" at {percent(other['macs_share'], 0)} of the MACs{speed}"
    return f"Next: {describe_trial(other)}, trial {other['trial_id']}: {compared_text(other)}{lost}{cost}."


def _more_images(choice: Choice) -> str:
    """Say how many images would tell the difference from the dense model, where it may be chance."""
    found = choice.against_dense
    if found is None or found.p_value < ALPHA or not found.effect:
        return ""
    wanted = found.num_images * (found.detectable / abs(found.effect)) ** 2
    count = f"about {round(wanted, -2):,.0f}" if wanted <= MOST_IMAGES else "more than a million"
    size = signed(found.effect).removeprefix(MINUS).removeprefix("+")
    return f"More images: a difference of {size} points from the dense model takes {count} images to be told."


def _speed(study: StudyFrames) -> str:
    trial: dict[str, Any] | None = study.best
    if trial is None or study.target is not None:
        return ""
    if trial["speedup"] is None:
        return "The speed: it was not measured, and fewer MACs need not be faster."
    return "The device: the speed was measured at batch 1 where the study ran; no target is named (evaluation.target)."


def _elsewhere(study: StudyFrames) -> str:
    seeds = study.ok.select("seed", "calibration_seed").n_unique()
    how = "one seed and one draw" if seeds == 1 else f"{seeds} pairs of seed and draw"
    return (
        f"Another network, data set or training: all of this is of one of each, with {how}; repeat it on yours before "
        "you rely on the order of methods."
    )
