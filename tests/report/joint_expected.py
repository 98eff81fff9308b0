"""What a joint report must print, table by table, from the slow means of `slow_joint`."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from report.slow_effect import NONE, Effect
from report.slow_joint import Row, Slow

from cleanai_ray.analysis.numbers import signed

BUDGETS = {"macs=0.7": "MACs \N{LESS-THAN OR EQUAL TO} 70 %"}
BUDGETS |= {"macs=0.5": "MACs \N{LESS-THAN OR EQUAL TO} 50 %", "macs=0.3": "MACs \N{LESS-THAN OR EQUAL TO} 30 %"}
KINDS = ("scratch", "narrow", "dense_finetuned", "torch_pruning")
RANDOM = "random"


def is_trial(row: Row, budget: str, **columns: Any) -> bool:
    return (
        row["control"] is None
        and row["requested_budget"] == budget
        and all(row[name] == value for name, value in columns.items())
    )


def is_control(row: Row, kind: str, budget: str | None) -> bool:
    return bool(row["control"] == kind and budget in (None, row["requested_budget"]))


class Expected:
    """The effects of every table of a joint report, each as one of those that hold at once.

    Args:
        folders: The run directories.
    """

    def __init__(self, folders: Iterable[Path]) -> None:
        self.slow = slow = Slow(folders)
        self.methods = sorted({row["method"] for row in slow.runs[0].rows if row["control"] is None})
        self.primary = self._together([self._versus(b, "coverage", "magnitude") for b in BUDGETS])
        explored = [self._versus(budget, "coverage", "taylor") for budget in BUDGETS]
        for stage in ("accuracy_pruned", "accuracy_repaired"):
            others = [name for name in self.methods if name != RANDOM]
            explored += [self._versus(budget, name, RANDOM, stage) for budget in BUDGETS for name in others]
        for question in (slow.ranking, slow.plans, slow.agreement):
            explored += [question(budget) for budget in BUDGETS]
        self.exploratory = self._together(explored)
        differ = [
            self._versus(budget, name, "magnitude")
            for budget in BUDGETS
            for name in self.methods
            if name != "magnitude"
        ]
        self.differences = self._together(differ)
        self.choices = [self._choose(budget) for budget in BUDGETS]
        self.against_dense = self._together([self._told(choice[0], None) for choice in self.choices])
        self.against_second = self._together([self._told(*choice) for choice in self.choices])
        self.controls = self._together(self._beside_controls())

    @staticmethod
    def _together(found: Iterable[Effect | None]) -> list[Effect]:
        known = [effect for effect in found if effect is not None]
        for effect in known:
            effect.family = max(sum(each.narrowest is not None for each in known), 1)
        return known

    def _versus(self, budget: str, first: str, second: str, stage: str = "accuracy") -> Effect | None:
        own, other = (partial(is_trial, budget=budget, method=name) for name in (first, second))
        return self.slow.compare(own, other, stage=stage)

    def _choose(self, budget: str) -> list[tuple[str, str]]:
        """The labels by their mean difference from dense on the images that decide, the best two."""
        labels = {row["label"] for row in self.slow.runs[0].rows if is_trial(row, budget)}
        scores = {}
        for label in sorted(labels):
            own = partial(is_trial, budget=budget, label=label)
            found = self.slow.compare(own, None, ~self.slow.tests)
            assert found is not None
            scores[label] = found.mean
        order = sorted(scores, key=lambda label: (-scores[label], label))
        return [(budget, label) for label in order[:2]]

    def _told(self, first: tuple[str, str], second: tuple[str, str] | None) -> Effect | None:
        sides = [None if key is None else partial(is_trial, budget=key[0], label=key[1]) for key in (first, second)]
        assert sides[0] is not None
        return self.slow.compare(sides[0], sides[1], self.slow.tests)

    def _beside_controls(self) -> list[Effect | None]:
        found = []
        for kind in KINDS:
            for choice in self.choices:
                budget, label = choice[0]
                asked = None if kind == "dense_finetuned" else budget
                control = partial(is_control, kind=kind, budget=asked)
                if not any(control(row) for row in self.slow.runs[0].rows):
                    continue
                label = "reconstruction" if kind in ("scratch", "narrow") else label
                own = partial(is_trial, budget=budget, label=label)
                found.append(self.slow.compare(own, control, self.slow.tests))
            if kind == "dense_finetuned":
                found.append(self.slow.compare(partial(is_control, kind=kind, budget=None), None, self.slow.tests))
        return found

    def dense(self, mask: np.ndarray) -> float:
        """The accuracy of the dense models, a mean over networks, in per cent."""
        own = {name: [r.dense[mask].mean() for r in self.slow.runs if r.network == name] for name in self.slow.networks}
        return 100 * float(np.mean([np.mean(each) for each in own.values()]))

    def rows(self) -> list[str]:
        """Every row of every table, as far as it is numbers."""
        effects = [*self.primary, *self.exploratory, *self.differences, *self.controls]
        rows = [effect.cells for effect in effects]
        rows += [" ".join(map(signed, effect.by_network.values())) for effect in (*self.primary, *self.differences)]
        dense = self.dense(self.slow.tests)
        for found in self.against_dense:
            rows.append(
                f"{dense + found.mean:.2f} % {dense:.2f} % {signed(found.mean)} {found.span(found.these)} "
                f"{found.span(found.like)}"
            )
        rows += [f"{100 * run.dense.mean():.2f} %" for run in self.slow.runs]
        return rows

    def sentences(self) -> list[str]:
        """Every sentence with a number: the headline, how sure it is, and the charts' own numbers."""
        found = [f"({effect_text(effect)})" for effect in (*self.primary, *self.against_dense)]
        for effect in self.primary:
            if effect.scope is None and effect.narrowest is not None:
                found.append(f"A difference of {effect.could} points would have been found four times in five.")
        return [*found, *(f": {effect_text(effect)}; " for effect in self.against_second)]

    def chart(self) -> list[str]:
        """The numbers of the chart of differences."""
        return [signed(effect.mean) for effect in self.differences]

    def seconds(self) -> list[str]:
        """The last column of the table of choices."""
        return [signed(effect.mean) for effect in self.against_second]


def effect_text(effect: Effect) -> str:
    span = "" if effect.told == NONE else f", {effect.told}"
    return f"{signed(effect.mean)} points{span}"
