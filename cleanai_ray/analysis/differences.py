"""The difference of every method from one reference, at each ratio or budget and in each mode."""

from __future__ import annotations

from dataclasses import dataclass

import polars as pl

from cleanai_ray.analysis.cells import CELL, gather
from cleanai_ray.analysis.comparisons import Comparison
from cleanai_ray.analysis.frames import StudyFrames, as_mapping
from cleanai_ray.analysis.image_differences import DENSE
from cleanai_ray.analysis.method_ranks import CONTROL
from cleanai_ray.analysis.questions.base import Evidence, Versus
from cleanai_ray.registry import QUESTIONS

_USUAL = ("magnitude", CONTROL)
"""The references of a study that declares none, the first that it has."""


@dataclass(frozen=True)
class Difference:
    """One method against the reference in one cell.

    Attributes:
        method: The method.
        name: Its name, with the number of its coverage metrics where their mean is compared.
        amount: The ratio or budget, in words.
        mode: The mode.
        found: The comparison, one of all differences that are shown: their intervals hold at once.
    """

    method: str
    name: str
    amount: str
    mode: str
    found: Comparison

    @property
    def is_told(self) -> bool:
        """True if the difference is beyond doubt, among all that are shown."""
        return self.found.is_above_zero or self.found.is_below_zero


@dataclass(frozen=True)
class Differences:
    """All differences of a study.

    Attributes:
        reference: The method that all others are compared with, or `dense`.
        rows: A row per method, ratio or budget, and mode, in the order of ratios and budgets, modes and names.
    """

    reference: str
    rows: tuple[Difference, ...]


def find_differences(study: StudyFrames) -> Differences | None:
    """Return how methods differ from a reference; None where no two things can be compared.

    The reference is the second method of the primary question, else magnitude, else random, else the dense model. Pairs
    in which both models are near chance are left out, as in `comparisons`.
    """
    evidence = Evidence({study.name: study}, gather({study.name: study}))
    reference = reference_of(study)
    order = study.trials.select("amount", "amount_order").unique().sort("amount_order")["amount"].to_list()
    modes = sorted(set(evidence.trials["mode"]), key=lambda mode: (mode != "local", mode))
    rows = []
    for amount in order:
        for mode in modes:
            in_cell = (pl.col("amount") == amount) & (pl.col("mode") == mode)
            for method in study.methods:
                found = None if method == reference else _compare(study, evidence, method, reference, in_cell)
                if found is not None and found.effect is not None:
                    rows.append(Difference(method, evidence.name(method), amount, mode, found))
    shown = tuple(Difference(row.method, row.name, row.amount, row.mode, row.found.among(len(rows))) for row in rows)
    return Differences(reference, shown) if shown else None


def reference_of(study: StudyFrames) -> str:
    """Return the method that the others of a study are compared with, or `dense`."""
    primary = as_mapping(study.study.get("questions")).get("primary")
    question = QUESTIONS.get(primary)() if primary in QUESTIONS.names() else None
    declared = (question.second,) if isinstance(question, Versus) else ()
    known = [method for method in (*declared, *_USUAL) if method in study.methods]
    return known[0] if known and len(study.methods) > 1 else DENSE


def _compare(
    study: StudyFrames, evidence: Evidence, method: str, reference: str, in_cell: pl.Expr
) -> Comparison | None:
    own = evidence.of(method).filter(in_cell)
    if reference != DENSE:
        return evidence.compare_trials(own, evidence.of(reference).filter(in_cell), CELL)
    dense = study.dense.get("accuracy")
    if dense is None:
        return None
    level = pl.when(pl.col("final").is_not_null()).then(100 * dense)
    return evidence.compare_trials(own, own.with_columns(level.alias("final"), pl.lit(DENSE).alias("trial_id")), CELL)
