"""Comparisons of two sides over all runs: means over networks of means over trainings of means over draws."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cleanai_ray.analysis.joint.difference import JointDifference
from cleanai_ray.analysis.joint.errors import Table, error_parts, weights_of
from cleanai_ray.analysis.joint.pairs import PairsOfRun, Side, pair_up_run
from cleanai_ray.analysis.joint.study import JointStudy, Row
from cleanai_ray.storage.image_schemas import Bits

CELL = ("mode", "steps")
"""The columns that make a cell at one ratio or budget: fixed, and averaged."""


def side_of(joint: JointStudy, method: str) -> Side:
    """Return the trials of a method, with the declared coverage metric where it has trials of it."""
    metric = joint.coverage_metric
    declared = any(row["method"] == method and row["coverage_metric"] == metric for row in joint.trials[0])
    if metric is None or not declared:
        return lambda row: bool(row["method"] == method)
    return lambda row: bool(row["method"] == method and row["coverage_metric"] == metric)


def compare_sides(
    joint: JointStudy,
    amount: str,
    first: Side,
    second: Side | str,
    *,
    stage: str = "final",
    cell: Sequence[str] = CELL,
    images: Bits | None = None,
) -> JointDifference | None:
    """Return the difference of two sides at one ratio or budget; see `compare_trials`."""
    trials = [[row for row in rows if row["amount"] == amount] for rows in joint.trials]
    return compare_trials(joint, trials, first, second, stage=stage, cell=cell, images=images)


def compare_trials(
    joint: JointStudy,
    trials: Sequence[Sequence[Row]],
    first: Side,
    second: Side | str,
    *,
    stage: str = "final",
    cell: Sequence[str] = CELL,
    images: Bits | None = None,
) -> JointDifference | None:
    """Return the difference of two sides, the first minus the second; None where a network has no pair.

    Draws of a run in which a trial failed, or in which both sides are near chance, are left out. A cell in which both
    sides have, draw by draw, the accuracies of another one is a copy, and counts once.

    Args:
        joint: The runs.
        trials: The trials of each run.
        first: The trials of the first side.
        second: Those of the second, or `pairs.DENSE`.
        stage: A name of `cells.STAGES`.
        cell: The columns that make a cell.
        images: The images that count, [N], where the runs share them; None for all.
    """
    is_known = joint.shares_images and stage == "final"
    mask = (np.ones(len(joint.test_images), dtype=bool) if images is None else images) if is_known else None
    tables = [
        pair_up_run(run, rows, first, second, stage=stage, cell=cell, mask=mask)
        for run, rows in zip(joint.runs, trials, strict=True)
    ]
    return over_runs(joint, tables, grain=joint.grain)


def over_runs(
    joint: JointStudy, tables: Sequence[PairsOfRun], *, threshold: float = 0.0, grain: float = 0.0
) -> JointDifference | None:
    """Return the mean over networks of what each run has; None where a network has nothing.

    Args:
        joint: The runs.
        tables: The values of each run.
        threshold: The value that the mean is tested against.
        grain: Smallest step of a value; units are taken to vary by that much at the least.
    """
    used = [place for place, table in enumerate(tables) if table.values]
    if len({joint.groups[place] for place in used}) < len(joint.networks):
        return None
    own = [tables[place] for place in used]
    groups = [joint.groups[place] for place in used]
    values, images = _by_draw(own), _by_image(own)
    within = np.array([[group == name for group in groups] for name in range(len(joint.networks))], dtype=np.float64)
    within /= within.sum(axis=1, keepdims=True)
    by_network: Table = within @ values
    of_networks = None if images is None else within @ images
    grain /= values.shape[1]
    return JointDifference(
        effect=float(weights_of(groups) @ values.mean(axis=1)),
        these=error_parts(values, groups, images, grain=grain),
        like_these=error_parts(by_network, [0] * len(by_network), of_networks, grain=grain),
        by_network=tuple(zip(joint.networks, map(float, by_network.mean(axis=1)), strict=True)),
        num_runs=len(used),
        num_pairs=sum(table.num_pairs for table in own),
        num_images=0 if images is None else images.shape[1],
        num_dropped=sum(table.num_dropped for table in tables),
        num_near_chance=sum(table.num_near_chance for table in tables),
        threshold=threshold,
    )


def _by_draw(tables: Sequence[PairsOfRun]) -> Table:
    """Return runs x draws, means over cells; one column where not all runs have all draws in all cells."""
    first, *others = (table.values.keys() for table in tables)
    cells, draws = {cell for cell, _ in first}, sorted({draw for _, draw in first})
    if all(keys == first for keys in others) and len(first) == len(cells) * len(draws):
        rows = [[np.mean([table.values[cell, draw][0] for cell in cells]) for draw in draws] for table in tables]
        return np.array(rows, dtype=np.float64)
    return np.array([[np.mean([value for value, _ in table.values.values()])] for table in tables])


def _by_image(tables: Sequence[PairsOfRun]) -> Table | None:
    """Return runs x images, means over cells and draws; None where one is not known image by image."""
    found = []
    for table in tables:
        known = [images for _, images in table.values.values() if images is not None]
        if len(known) < len(table.values):
            return None
        found.append(np.mean(known, axis=0))
    return np.array(found, dtype=np.float64)
