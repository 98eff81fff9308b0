"""Question h1: are more calibration samples better."""

from __future__ import annotations

from dataclasses import replace

import polars as pl

from cleanai_ray.analysis.answers import Draft
from cleanai_ray.analysis.comparisons import Comparison
from cleanai_ray.analysis.draws import ONE_DRAW, REPLICATE_UNITS, known_draws
from cleanai_ray.analysis.numbers import signed
from cleanai_ray.analysis.questions.base import Evidence, Question
from cleanai_ray.registry import QUESTIONS

ENOUGH = 0.5
"""Points that fewer samples may cost, with the whole 95 % interval, to count as enough."""


@QUESTIONS.register("h1")
class MoreSamples(Question):
    """The most calibration samples against the fewest, for the methods that read them."""

    position = 100
    text = "Are more calibration samples better?"

    def draft(self, evidence: Evidence) -> Draft:
        """Compare the most samples with the fewest; the numbers between are in the remark."""
        known = known_draws(evidence.studies, evidence.trials)
        counts = {kin: sorted(set(own["samples"])) for (kin,), own in known.group_by(["kin"], maintain_order=True)}
        chosen = max(counts, key=lambda kin: counts[kin][-1] - counts[kin][0], default=None)
        if chosen is None or len(counts[chosen]) < 2:
            return Draft(missing=ONE_DRAW)
        *fewer, most = counts[chosen]
        readers = known.filter((pl.col("kin") == chosen) & pl.col("reads_data"))
        found = {count: _gain(readers, most, count, evidence).among(len(fewer)) for count in fewer}
        subject = f"{most} calibration samples against {fewer[0]}, methods that read them"
        return Draft(found[fewer[0]], subject, resolve=lambda chosen: (None, _remark(most, found, chosen.family)))


def _remark(most: int, uncorrected: dict[int, Comparison], family: int) -> str:
    """Say what the numbers of samples between the fewest and the most gain, and which is enough."""
    found = {count: replace(one, family=family) for count, one in uncorrected.items()}
    remarks = []
    if len(found) > 1:
        others = [f"{count} {_with_interval(one)}" for count, one in list(found.items())[1:]]
        remarks.append(f"{most} against the numbers between, in points: {', '.join(others)}.")
    enough = next((count for count, one in found.items() if one.high is not None and one.high < ENOUGH), None)
    if enough is not None:
        remarks.append(f"{enough} are enough: they cost less than {ENOUGH:g} points, with the whole interval.")
    elif all(one.high is not None for one in found.values()):
        remarks.append(f"No fewer than {most} are sure to cost less than {ENOUGH:g} points.")
    return " ".join(remarks)


def _gain(readers: pl.DataFrame, many: int, few: int, evidence: Evidence) -> Comparison:
    """Return what more samples gain; within one draw where both numbers have it, as the fewer are part of the more."""
    own, other = (readers.filter(pl.col("samples") == count) for count in (many, few))
    is_shared = bool(set(own["draw"]) & set(other["draw"]))
    replicate = pl.struct(["trial_seed", "draw"] if is_shared else ["trial_seed"])
    both = pl.concat([own, other]).with_columns(replicate.rank("dense").cast(pl.Int64).alias("seed"))
    # Metrics of one cell share nearly everything: they are averaged into one observation of it.
    units = ("method", *REPLICATE_UNITS)
    return evidence.compare_trials(both.head(len(own)), both.tail(len(other)), units)


def _with_interval(found: Comparison) -> str:
    if found.effect is None:
        return "nothing to compare"
    if found.low is None or found.high is None:
        return signed(found.effect)
    return f"{signed(found.effect)} ({signed(found.low)} to {signed(found.high)})"
