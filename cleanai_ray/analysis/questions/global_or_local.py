"""Question e: is it better to compare scores over the whole network than within a group."""

from __future__ import annotations

import polars as pl

from cleanai_ray.analysis.answers import Draft
from cleanai_ray.analysis.comparisons import compare
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
        found = compare(wide, near, ("study", "method", "amount", "steps"), "final", grain=evidence.grain)
        effects = []
        for name in sorted(set(evidence.trials["method"])):
            of_method = pl.col("method") == name
            own = compare(wide.filter(of_method), near.filter(of_method), _WITHOUT_MODE, "final", grain=evidence.grain)
            effects += [f"{name} {signed(own.effect)}"] if own.effect is not None else []
        remark = f"By method, in points: {', '.join(effects)}." if len(effects) > 1 else ""
        return Draft(found, "global against local, cell by cell of each method", remark)
