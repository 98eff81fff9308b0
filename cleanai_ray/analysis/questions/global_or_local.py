"""Question e: is it better to compare scores over the whole network than within a group."""

from __future__ import annotations

import polars as pl

from cleanai_ray.analysis.answers import Draft
from cleanai_ray.analysis.numbers import signed
from cleanai_ray.analysis.questions.base import Evidence, Question
from cleanai_ray.registry import QUESTIONS

_WITHOUT_MODE = ("study", "amount", "steps")
"""A cell, apart from its mode."""


@QUESTIONS.register("e")
class GlobalOrLocal(Question):
    """Mode global against mode local, within each method."""

    position = 60
    text = "Is global better than local?"

    def draft(self, evidence: Evidence) -> Draft:
        """Compare the two modes, cell by cell of each method."""
        wide, near = (evidence.trials.filter(pl.col("mode") == name) for name in ("global", "local"))
        if wide.is_empty() or near.is_empty():
            return Draft(missing="The study does not have both modes, local and global.")
        copies, effects = [], []
        for name in sorted(set(evidence.trials["method"])):
            of_method = pl.col("method") == name
            if _are_copies(wide.filter(of_method), near.filter(of_method)):
                copies.append(name)
                continue
            own = evidence.compare_trials(wide.filter(of_method), near.filter(of_method), _WITHOUT_MODE)
            effects += [f"{name} {signed(own.effect)}"] if own.effect is not None else []
        is_copy = pl.col("method").is_in(copies)
        units = ("study", "method", "amount", "steps")
        found = evidence.compare_trials(wide.filter(~is_copy), near.filter(~is_copy), units)
        remark = f"By method, in points: {', '.join(effects)}." if len(effects) > 1 else ""
        remark += f" Left out, since both modes are the same there: {', '.join(copies)}." if copies else ""
        return Draft(found, "global against local, cell by cell of each method", remark.strip())


def _are_copies(wide: pl.DataFrame, near: pl.DataFrame) -> bool:
    """Return whether a method has the same accuracies in both modes, trial by trial: it compares no scores."""
    keys = ["study", "label", "amount", "steps", "seed"]
    both = wide.select(*keys, "final").join(near.select(*keys, "final"), on=keys, nulls_equal=True, suffix="_near")
    known = both.drop_nulls(["final", "final_near"])
    return len(known) > 1 and bool((known["final"] == known["final_near"]).all())
