"""What to take at each ratio or budget: chosen on the images that decide, told on those that decided nothing."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from cleanai_ray.analysis.joint.difference import JointDifference
from cleanai_ray.analysis.joint.evidence import compare_sides
from cleanai_ray.analysis.joint.pairs import DENSE, Side
from cleanai_ray.analysis.joint.study import JointStudy, Row

_KEYS = ("label", "mode", "steps")


@dataclass(frozen=True)
class JointChoice:
    """The configuration that a ratio or budget leads to.

    Attributes:
        amount: The ratio or budget, in words.
        name: The configuration in words.
        key: Its label, mode and steps.
        deciding: Its mean difference from dense on the images that decide, in points.
        dense: Accuracy of the dense models on the images that it is told on, a mean over networks, in [0, 1].
        against_dense: Its difference from dense on these images, one of those of all ratios and budgets.
        runner_up: The next best configuration on the images that decide, in words; None where there is no other.
        against_runner_up: The difference from it on the images that decided nothing, likewise.
    """

    amount: str
    name: str
    key: tuple[object, ...]
    deciding: float
    dense: float
    against_dense: JointDifference
    runner_up: str | None
    against_runner_up: JointDifference | None

    @property
    def accuracy(self) -> float:
        """The accuracy of the configuration on the images that it is told on, in [0, 1]."""
        return self.dense + self.against_dense.effect / 100


def choose_jointly(joint: JointStudy) -> tuple[JointChoice, ...]:
    """Return what to take at each ratio or budget.

    Configurations are judged by their mean difference from dense over networks, trainings and draws on the images that
    decide. Those that are not in every run, or of which a trial failed, are left out.
    """
    found = [choice for amount in joint.amounts if (choice := _choose(joint, amount)) is not None]
    return tuple(
        replace(
            choice,
            against_dense=choice.against_dense.among(len(found)),
            against_runner_up=None if choice.against_runner_up is None else choice.against_runner_up.among(len(found)),
        )
        for choice in found
    )


def _choose(joint: JointStudy, amount: str) -> JointChoice | None:
    deciding = ~joint.test_images if joint.is_tested else joint.test_images
    told = joint.test_images
    ranked: list[tuple[float, tuple[object, ...]]] = []
    for key in whole_configurations(joint, amount):
        found = compare_sides(joint, amount, side_of_key(key), DENSE, images=deciding)
        if found is not None:
            ranked.append((found.effect, key))
    ranked.sort(key=lambda item: (-item[0], str(item[1])))
    if not ranked:
        return None
    (effect, key), *others = ranked
    against = compare_sides(joint, amount, side_of_key(key), DENSE, images=told)
    assert against is not None
    second = others[0][1] if others else None
    runner_up = None
    if second is not None:
        runner_up = compare_sides(joint, amount, side_of_key(key), side_of_key(second), cell=(), images=told)
    named = None if second is None else name_of(joint, second)
    return JointChoice(amount, name_of(joint, key), key, effect, _dense(joint), against, named, runner_up)


def side_of_key(key: tuple[object, ...]) -> Side:
    """Return the trials of a configuration: its label, mode and steps."""
    return lambda row: _key(row) == key


def name_of(joint: JointStudy, key: tuple[object, ...]) -> str:
    """Return a configuration in words, with what tells it from others: `hybrid`, or `hybrid (global, 2 steps)`."""
    keys = {_key(row) for rows in joint.trials for row in rows}
    details = [str(key[1])] if len({mode for _, mode, _ in keys}) > 1 else []
    details += [f"{key[2]} steps"] if len({steps for _, _, steps in keys}) > 1 else []
    return f"{key[0]} ({', '.join(details)})" if details else str(key[0])


def _key(row: Row) -> tuple[object, ...]:
    return tuple(row[name] for name in _KEYS)


def whole_configurations(joint: JointStudy, amount: str) -> list[tuple[object, ...]]:
    """Return the configurations, by `JointChoice.key`, that every run has, and all of whose trials succeeded."""
    wanted: set[tuple[object, ...]] | None = None
    for rows in joint.trials:
        own = [row for row in rows if row["amount"] == amount]
        failed = {_key(row) for row in own if row["final"] is None}
        whole = {_key(row) for row in own} - failed
        wanted = whole if wanted is None else wanted & whole
    return sorted(wanted or (), key=str)


def _dense(joint: JointStudy) -> float:
    own = []
    for run in joint.runs:
        hits = run.dense_hits[joint.test_images] if joint.shares_images else None
        own.append(float(run.study.dense["accuracy"]) if hits is None else float(hits.mean()))
    means = [np.mean([own[r] for r, group in enumerate(joint.groups) if group == k]) for k in set(joint.groups)]
    return float(np.mean(means))
