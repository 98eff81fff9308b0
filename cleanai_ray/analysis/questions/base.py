"""The base of all questions, and two common forms: one method against another, and every method against random."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import polars as pl

from cleanai_ray.analysis.answers import AnswerVerdict, Draft
from cleanai_ray.analysis.cells import CELL, grain_of
from cleanai_ray.analysis.comparisons import Comparison, compare
from cleanai_ray.analysis.frames import StudyFrames, as_mapping
from cleanai_ray.analysis.image_differences import ImageHits
from cleanai_ray.analysis.method_ranks import CONTROL
from cleanai_ray.analysis.numbers import plural, signed

FEWEST_METRICS = 3
"""Coverage metrics from which their mean must not rest on one of them."""


@dataclass(frozen=True)
class Evidence:
    """The tables that questions are answered from.

    Attributes:
        studies: The frames of every study, by its name.
        trials: The trials of all of them, as `cells.gather` returns them.
    """

    studies: Mapping[str, StudyFrames]
    trials: pl.DataFrame

    @cached_property
    def grain(self) -> float:
        """The largest step of an accuracy, in points; 0 where it is not known."""
        return grain_of(self.trials)

    @cached_property
    def images(self) -> ImageHits | None:
        """The images that each trial gets right; None where they are not known, or of several studies."""
        return ImageHits.of(self.studies)

    @cached_property
    def metric(self) -> str | None:
        """The coverage metric that the study files declare; None where they declare none, or several."""
        sections = [as_mapping(study.study.get("questions")) for study in self.studies.values()]
        declared = {section.get("coverage_metric") for section in sections}
        return declared.pop() if len(declared) == 1 else None

    def of(self, method: str) -> pl.DataFrame:
        """Return the trials of a method; with the declared coverage metric, where it uses one that was declared."""
        own = self.trials.filter(pl.col("method") == method)
        declared = own.filter(pl.col("coverage_metric") == self.metric) if self.metric else own
        return declared if len(declared) else own

    def absent(self, *methods: str) -> str:
        """Return a sentence that names those of these methods that have no trial; empty where all have some."""
        missing = [name for name in methods if self.of(name).is_empty()]
        return f"The study has no trial of {' or '.join(missing)}." if missing else ""

    def name(self, method: str) -> str:
        """Return a method's name, with the number of its coverage metrics where it has several."""
        count = self.of(method)["label"].n_unique()
        return f"{method} (mean of {count} metrics)" if count > 1 else method

    def compare(self, first: str, second: str, stage: str = "final") -> Comparison:
        """Compare the accuracies of two methods after a stage, cell by cell."""
        return self.compare_trials(self.of(first), self.of(second), CELL, stage)

    def compare_trials(
        self, first: pl.DataFrame, second: pl.DataFrame, units: Sequence[str] = CELL, stage: str = "final"
    ) -> Comparison:
        """Compare the accuracies of two sets of trials after a stage, cell by cell."""
        images = self.images if stage == "final" else None
        return compare(first, second, units, stage, grain=self.grain, images=images)


class Question(ABC):
    """A question about methods. A class is registered under the key that the question has in every report.

    Attributes:
        position: Place among the questions; any number, so that a new one goes between two that are there.
        text: The question.
        unit: Unit of the effect: `points` of accuracy, `rank correlation`, `correlation` or `overlap`.
    """

    position: float
    text: str
    unit: str = "points"

    @abstractmethod
    def draft(self, evidence: Evidence) -> Draft:
        """Return the comparison that decides the question; all that are shown together are corrected later."""


class Versus(Question):
    """A question that asks if one method is better than another.

    Attributes:
        first: The method that is asked about.
        second: The method that it is compared with.
    """

    first: str
    second: str

    def draft(self, evidence: Evidence) -> Draft:
        """Compare the two, cell by cell."""
        missing = evidence.absent(self.first, self.second)
        found = evidence.compare(self.first, self.second)
        subject = f"{evidence.name(self.first)} against {evidence.name(self.second)}"
        if missing:
            return Draft(found, subject, missing=missing)
        decisive = self._decisive_metric(evidence, found)
        remark = self._with_best_metric(evidence)
        if decisive is not None:
            remark = f"Without {decisive} the interval holds zero, so the answer rests on one metric. {remark}".rstrip()
        return Draft(found, subject, remark, settled=None if decisive is None else "cannot tell")

    def _decisive_metric(self, evidence: Evidence, found: Comparison) -> str | None:
        """Return a metric without which there would be no answer; None where there is none, or no answer anyway."""
        own = evidence.of(self.first)
        metrics = sorted(set(own["coverage_metric"].drop_nulls()))
        if len(metrics) < FEWEST_METRICS or not (found.is_above_zero or found.is_below_zero):
            return None
        for name in metrics:
            rest = evidence.compare_trials(own.filter(pl.col("coverage_metric") != name), evidence.of(self.second))
            if not (rest.is_above_zero if found.is_above_zero else rest.is_below_zero):
                return name
        return None

    def _with_best_metric(self, evidence: Evidence) -> str:
        """Say how the best of several metrics does; it was chosen by the same accuracies, so there is no test."""
        own = evidence.of(self.first)
        order = metrics_by_mean(own)
        if len(order) < 2:
            return ""
        best = own.filter(pl.col("coverage_metric") == order[0])
        found = evidence.compare_trials(best, evidence.of(self.second))
        return "" if found.effect is None else f"Its best metric on average, {order[0]}: {signed(found.effect)} points."


class BeatsRandom(Question):
    """A question that asks if any method is better than random pruning.

    Attributes:
        stage: The accuracy that is compared, a name of `cells.STAGES`.
        words: The stage in words.
    """

    stage: str
    words: str

    def draft(self, evidence: Evidence) -> Draft:
        """Compare every method with random, corrected for their number; the clearest of them decides.

        Where nothing can be tested, it is the one that is farthest ahead.
        """
        others = sorted(set(evidence.trials["method"]) - {CONTROL})
        missing = evidence.absent(CONTROL)
        if not missing and not others:
            missing = "The study has no method but random."
        if not missing and not evidence.trials[self.stage].count():
            missing = f"No trial has an accuracy {self.words}."
        if missing:
            return Draft(missing=missing)
        found = {name: evidence.compare(name, CONTROL, self.stage).among(len(others)) for name in others}
        leading = max(others, key=lambda name: (support(found[name]), found[name].effect or 0.0))
        how = "farthest ahead" if found[leading].p_value is None else "clearest"
        subject = f"{evidence.name(leading)}, the {how} of {plural(len(others), 'method')}, against random"
        return Draft(found[leading], subject, resolve=lambda chosen: _against_random(found, chosen))


def _against_random(found: Mapping[str, Comparison], chosen: Comparison) -> tuple[AnswerVerdict | None, str]:
    """Return a verdict that the clearest method does not give, and the methods that are better than random.

    Args:
        found: Every method against random.
        chosen: The clearest of them, corrected for all questions that are shown; all methods are held to its level.
    """
    corrected = {name: replace(one, family=chosen.family) for name, one in found.items()}
    better = [f"{name} {signed(one.effect or 0.0)}" for name, one in corrected.items() if one.is_above_zero]
    count = f"{len(better)} of {plural(len(found), 'method')} beyond doubt, in points"
    none = "No method is better than random beyond doubt."
    remark = f"Better than random: {count}: {', '.join(better)}." if better else none
    # That one method loses does not tell if another one wins.
    all_worse = all(one.is_below_zero for one in corrected.values())
    undecided = chosen.effect is not None and chosen.effect < 0 and not all_worse
    return ("cannot tell" if undecided else None), remark


def metrics_by_mean(trials: pl.DataFrame) -> list[str]:
    """Return the coverage metrics of trials, the most accurate on average first, over the cells that all of them have.

    Where they share none, each is averaged over its own; metrics whose trials all failed are left out.
    """
    count = trials["coverage_metric"].drop_nulls().n_unique()
    shared = trials.filter((pl.col("final").count().over([*CELL, "seed"]) == count) & pl.col("final").is_not_null())
    means = (shared if len(shared) else trials.drop_nulls("final")).group_by("coverage_metric").agg(pl.mean("final"))
    return means.sort(["final", "coverage_metric"], descending=[True, False])["coverage_metric"].drop_nulls().to_list()


def support(found: Comparison) -> float:
    """Return how clearly an effect is above zero: 1 - p for one above it, p - 1 for one below."""
    if found.effect is None or found.p_value is None:
        return 0.0
    return (1 - found.p_value) * (1 if found.effect > 0 else -1)
