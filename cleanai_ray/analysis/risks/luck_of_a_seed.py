"""Risk: results that depend on a seed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import polars as pl

from cleanai_ray.analysis.frames import StudyFrames, best_first
from cleanai_ray.analysis.numbers import percent, plural
from cleanai_ray.analysis.risks.base import LARGE_LOSS, Check, Risk, shorten_list
from cleanai_ray.analysis.score_words import compared_text
from cleanai_ray.registry import RISKS

_CELL = ["amount", "mode", "steps", "calibration_samples", "calibration_seed"]
"""A cell whose replicates differ in the seed of the trial alone."""


@RISKS.register("luck_of_a_seed")
class LuckOfASeed(Check):
    """Winners that owe their place to the seed of a trial."""

    position = 250
    looks_for = "winners and accuracies that change with the seed"

    def find(self, study: StudyFrames) -> Iterator[Risk]:
        """Yield a risk of the best trial, and one of all cells."""
        several = study.ok.filter(pl.n_unique("seed").over(_CELL) > 1)
        if study.best is None or several.is_empty():
            return
        yield from _best_trial(several, study.best)
        yield from _winners(several)


def _best_trial(several: pl.DataFrame, best: dict[str, Any]) -> Iterator[Risk]:
    """Yield a risk if the accuracies of the best trial's method spread over more than a point in its cell."""
    of_cell = pl.all_horizontal(pl.col(name).eq_missing(pl.lit(best[name])) for name in _CELL)
    own = several.filter(of_cell & (pl.col("label") == best["label"])).sort("seed")
    if len(own) < 2:
        return
    values = own["accuracy"].to_list()
    spread = 100 * (max(values) - min(values))
    if spread > LARGE_LOSS:
        lines = [f"seed {seed}: {percent(value, 2)}" for seed, value in own.select("seed", "accuracy").rows()]
        sentence = (
            f"The best trial owes up to {spread:.1f} points to its seed: its method ranges from "
            f"{compared_text(best, min(values))} to {percent(max(values))} over {len(own)} seeds."
        )
        yield Risk("medium", "luck of a seed", sentence, shorten_list(lines), is_about_best=True)


def _winners(several: pl.DataFrame) -> Iterator[Risk]:
    """Yield a risk if the most accurate method of a cell changes with the seed."""
    winners = best_first(several).group_by([*_CELL, "seed"], maintain_order=True).first()
    counted = winners.group_by(_CELL).agg(pl.n_unique("label").alias("winners"), pl.col("label"))
    flipped = counted.filter(pl.col("winners") > 1)
    if len(flipped):
        lines = sorted(
            f"{amount}, {mode}: {', '.join(sorted(set(labels)))}"
            for amount, mode, labels in flipped.select("amount", "mode", "label").rows()
        )
        sentence = (
            f"In {len(flipped)} of {plural(len(counted), 'cell')} with several seeds the winner depends on the seed."
        )
        yield Risk("info", "luck of a seed", sentence, shorten_list(lines))
