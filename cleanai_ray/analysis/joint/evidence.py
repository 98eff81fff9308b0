"""Comparisons of two sides over all runs: means over networks of means over trainings of means over draws."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from cleanai_ray.analysis.joint.difference import JointDifference
from cleanai_ray.analysis.joint.error_parts import Part
from cleanai_ray.analysis.joint.errors import FEWEST_DRAWS, Table, error_parts, weights_of
from cleanai_ray.analysis.joint.pairs import Cell, PairsOfRun, Side, is_of_images, pair_up_run
from cleanai_ray.analysis.joint.study import JointStudy, Row
from cleanai_ray.storage.image_schemas import Bits

CELL = ("mode", "steps")
"""The columns that make a cell at one ratio or budget, with the number of images: fixed, and averaged."""

_NOTHING = 1e-9
"""An error below it is none: units that are all alike, of which no step is known, tell nothing of others."""


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
    return over_runs(joint, tables)


def over_runs(joint: JointStudy, tables: Sequence[PairsOfRun], *, threshold: float = 0.0) -> JointDifference | None:
    """Return the mean over networks of what each run has; None where a network has nothing.

    The part that draws have in its error is told from those that all runs have; where these are fewer than three, it
    has no interval. Units are taken to vary by the smallest step of a value at the least.

    Args:
        joint: The runs.
        tables: The values of each run.
        threshold: The value that the mean is tested against.
    """
    used = [place for place, table in enumerate(tables) if table.values]
    if len({joint.groups[place] for place in used}) < len(joint.networks):
        return None
    own = [tables[place] for place in used]
    groups = [joint.groups[place] for place in used]
    means, images = np.array([np.mean([value for value, _ in table.values.values()]) for table in own]), _by_image(own)
    draws, few_draws = shared_draws(own)
    within = np.array([[group == name for group in groups] for name in range(len(joint.networks))], dtype=np.float64)
    within /= within.sum(axis=1, keepdims=True)
    by_network: Table = within @ means
    grain = max(table.grain for table in own) / min(len({draw for _, draw in table.values}) for table in own)

    def parts(by: Table, groups: Sequence[int]) -> tuple[Part, ...] | None:
        of_images = None if images is None else by @ images
        found = error_parts(by @ draws, groups, of_images, means=by @ means, grain=grain)
        return None if found is None or few_draws is not None or found[0].error < _NOTHING else found

    return JointDifference(
        effect=float(weights_of(groups) @ means),
        these=parts(np.eye(len(own)), groups),
        like_these=parts(within, [0] * len(within)),
        by_network=tuple(zip(joint.networks, map(float, by_network), strict=True)),
        num_runs=len(used),
        num_pairs=sum(table.num_pairs for table in own),
        num_images=0 if images is None else images.shape[1],
        num_dropped=sum(table.num_dropped for table in tables),
        num_near_chance=sum(table.num_near_chance for table in tables),
        num_unknown=sum(table.num_unknown for table in tables),
        few_draws=few_draws,
        threshold=threshold,
    )


def shared_draws(tables: Sequence[PairsOfRun]) -> tuple[Table, int | None]:
    """Return the means over cells of the draws that all runs have, runs x draws; and their number if it is too small.

    Every cell has every one of these draws in every run: where all cells do not have three of them, those with the
    fewest are left out. Fewer than three draws of calibration images are too few, and so are fewer than three seeds
    where some runs have more; one seed, or none, of trials that read no images is not. Then there are no draws.
    """
    shared = set.intersection(*(set(table.values) for table in tables))
    seen = {draw for table in tables for _, draw in table.values}
    by_cell: dict[Cell, set[str]] = defaultdict(set)
    for cell, draw in shared:
        by_cell[cell].add(draw)
    cells = sorted(by_cell, key=lambda cell: (-len(by_cell[cell]), str(cell)))
    while cells:
        draws = sorted(set.intersection(*(by_cell[cell] for cell in cells)))
        if len(draws) >= FEWEST_DRAWS:
            found = [[np.mean([table.values[cell, draw][0] for cell in cells]) for draw in draws] for table in tables]
            return np.array(found, dtype=np.float64), None
        cells.pop()
    most = max(map(len, by_cell.values()), default=0)
    is_few = most < len(seen) or any(map(is_of_images, seen))
    return np.zeros((len(tables), 0)), most if is_few else None


def _by_image(tables: Sequence[PairsOfRun]) -> Table | None:
    """Return runs x images, means over cells and draws; None where one is not known image by image."""
    found = []
    for table in tables:
        known = [images for _, images in table.values.values() if images is not None]
        if len(known) < len(table.values):
            return None
        found.append(np.mean(known, axis=0))
    return np.array(found, dtype=np.float64)
