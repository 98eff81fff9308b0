"""Whether a trial meets the limits that its study states, and what to tell of it where the report is not read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import polars as pl

from cleanai_ray.analysis.chosen import CONFIGURATION, Choice, has_test_images, reported_row, selection_view
from cleanai_ray.analysis.frames import StudyFrames
from cleanai_ray.analysis.image_evidence import against_dense
from cleanai_ray.analysis.limits import LIMITS, MAX_LOSS, limit_text, meets, stated_limits, write_beyond
from cleanai_ray.analysis.numbers import plural, signed
from cleanai_ray.analysis.score_words import words_of
from cleanai_ray.storage.image_schemas import TEST

_VERBS = {MAX_LOSS: "loses"}

Met = Literal["met", "not met", "cannot tell"]


@dataclass(frozen=True)
class LimitVerdict:
    """What is known of a trial and one limit.

    Attributes:
        verdict: Whether it is met: of the accuracy lost, by the images that decide and, with the whole 95 % interval,
            by those that are reported on; of all else by what was measured.
        limit: The limit in words: `accuracy lost at most 1 point`.
        why: The numbers, for a sentence.
    """

    verdict: Met
    limit: str
    why: str


def limit_verdicts(study: StudyFrames, trial_id: str) -> list[LimitVerdict]:
    """Return whether a trial that succeeded meets each of the study's limits; empty where the study states none."""
    limits = stated_limits(study)
    if not limits:
        return []
    rows = selection_view(study).ok
    own = study.ok.row(by_predicate=pl.col("trial_id") == trial_id, named=True)
    same = [pl.col(name).eq_missing(pl.lit(own[name], dtype=rows.schema[name])) for name in CONFIGURATION]
    decided = rows.filter(*same)
    found = []
    for name, value in limits.items():
        has = decided[LIMITS[name].column][0]
        verdict: Met = "cannot tell"
        if has is not None:
            verdict = "met" if decided.select(meets(name, value)).item() else "not met"
        why = (
            "it was not measured"
            if has is None
            else f"it {_VERBS.get(name, 'has')} {write_beyond(name, has, value * LIMITS[name].factor)}"
        )
        if name == MAX_LOSS and has is not None:
            verdict, why = _of_loss(study, trial_id, value, verdict, why)
        found.append(LimitVerdict(verdict, limit_text(study, name, value), why))
    return found


def _of_loss(study: StudyFrames, trial_id: str, limit: float, verdict: Met, why: str) -> tuple[Met, str]:
    """Return the verdict on the accuracy lost with the interval on the images that are reported on."""
    has_test = has_test_images(study)
    trial = reported_row(study, trial_id, has_test=has_test)
    compared = against_dense(study, trial, TEST if has_test else None)
    where = " on the images that decide" if has_test else ""
    if compared is None:
        return ("not met" if verdict == "not met" else "cannot tell"), f"{why}{where}, without an interval"
    flattered = 0.0 if has_test else study.choice.optimism or 0.0
    low, high = (flattered - end for end in reversed(compared.interval))
    images = plural(compared.num_images, "test image") if has_test else plural(compared.num_images, "image")
    lost = f"{signed(flattered - compared.effect).removeprefix('+')}, 95 % interval {signed(low)} to {signed(high)}"
    why = f"{why}{where} ({lost}, on {images})"
    if verdict == "met" and high >= limit:
        verdict = "not met" if low > limit else "cannot tell"
    return verdict, why


def limit_note(study: StudyFrames, trial_id: str) -> str:
    """Return one line on the limits that a trial misses; "" where it misses none."""
    missed = [one for one in limit_verdicts(study, trial_id) if one.verdict == "not met"]
    told = "; ".join(f"{one.limit}, and {one.why}" for one in missed)
    return _in_words(study, f"trial {trial_id} does not meet what the study states: {told}") if told else ""


def unmet_line(study: StudyFrames, choice: Choice) -> str:
    """Return one line for a study whose limits no trial meets: which, how far the nearest is, what may help; or ""."""
    limits, found = stated_limits(study), choice.recommendation
    if not limits or choice.trial is None or choice.is_recommended:
        return ""
    if not found.missing:  # Some meet the limits, and are slower than the dense model.
        return _in_words(study, found.in_full)
    ways = "a milder ratio or budget (sweep), longer fine-tuning (finetune.epochs)"
    ways = ways if MAX_LOSS in limits else "a smaller budget (sweep.budgets)"
    return _in_words(study, f"{found.in_full} What may help: {ways}, or another limit (recommend).")


def _in_words(study: StudyFrames, text: str) -> str:
    metrics = study.ok["metric"].drop_nulls().to_list() if "metric" in study.ok.columns else []
    return words_of(metrics[0] if metrics else None).write(text)
