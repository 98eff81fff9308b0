"""Pairs of two sides within one run: the trials of a side are averaged in every cell and draw of the images."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cleanai_ray.analysis.joint.study import JointRun, Row
from cleanai_ray.storage.image_schemas import Bits

Side = Callable[[Row], bool]
"""True for the trials of one side."""

Cell = tuple[object, ...]
Images = NDArray[np.float64]

DENSE = "dense"
"""The second side of a comparison with the dense model."""

_ANY = "any"
"""The draw of trials that read no calibration images: they stand beside every draw."""

_SAME = 1e-9


@dataclass(frozen=True)
class PairsOfRun:
    """The pairs of one run.

    Attributes:
        values: By cell and draw, the difference in points, and the same image by image, [N], where that is known.
        num_pairs: Pairs of trials.
        num_dropped: Draws that were left out because a trial failed.
        num_near_chance: Draws that were left out because both models are near chance.
    """

    values: Mapping[tuple[Cell, str], tuple[float, Images | None]]
    num_pairs: int = 0
    num_dropped: int = 0
    num_near_chance: int = 0


@dataclass(frozen=True)
class _Mean:
    """One side in one cell and draw: its mean accuracy in points, and that of each image; None if not known."""

    value: float | None
    images: Images | None
    chance: float | None
    num_trials: int


_Means = dict[tuple[Cell, str], _Mean]


def pair_up_run(
    run: JointRun,
    rows: Sequence[Row],
    first: Side,
    second: Side | str,
    *,
    stage: str,
    cell: Sequence[str],
    mask: Bits | None,
) -> PairsOfRun:
    """Return the differences of two sides of a run, the first minus the second.

    Args:
        run: The run.
        rows: Its trials, with the columns of `cells.gather`.
        first: The trials of the first side.
        second: Those of the second, or `DENSE`.
        stage: The compared column.
        cell: The columns that make a cell.
        mask: The images that count, [N]; None where single images are not known.
    """
    own = [row for row in rows if first(row)]
    others = [row for row in rows if callable(second) and second(row)]
    by_seed = all(row["draw"] is None for row in (*own, *others))
    means = _means(run, own, stage, cell, mask, by_seed=by_seed)
    if callable(second):
        return _pairs(means, _means(run, others, stage, cell, mask, by_seed=by_seed))
    dense = _dense(run, mask)
    return _pairs(means, dict.fromkeys(means, dense))


def _means(
    run: JointRun, rows: Sequence[Row], stage: str, cell: Sequence[str], mask: Bits | None, *, by_seed: bool
) -> _Means:
    grouped: dict[tuple[Cell, str], list[Row]] = defaultdict(list)
    for row in rows:
        draw = f"{row['samples']} of {row['draw']}" if row["draw"] is not None else _ANY
        draw = f"seed {row['trial_seed']}" if by_seed else draw
        grouped[tuple(row[name] for name in cell), draw].append(row)
    return {key: _mean(run, members, stage, mask) for key, members in grouped.items()}


def _mean(run: JointRun, rows: Sequence[Row], stage: str, mask: Bits | None) -> _Mean:
    values, chance, count = [row[stage] for row in rows], rows[0]["chance"], len(rows)
    if any(value is None for value in values):
        return _Mean(None, None, chance, count)
    bits = [] if mask is None else [run.hits[row["trial_id"]] for row in rows if row["trial_id"] in run.hits]
    if mask is None or (len(bits) < count and mask.all()):
        return _Mean(float(np.mean(values)), None, chance, count)
    if len(bits) < count:  # which of these images it got right is not known
        return _Mean(None, None, chance, count)
    images: Images = np.asarray(100 * np.mean([own[mask] for own in bits], axis=0), dtype=np.float64)
    return _Mean(float(images.mean()), images, chance, count)


def _dense(run: JointRun, mask: Bits | None) -> _Mean:
    if mask is None:
        accuracy = run.study.dense.get("accuracy")
        return _Mean(None if accuracy is None else 100 * accuracy, None, None, 1)
    images: Images = np.asarray(100 * run.dense_hits[mask], dtype=np.float64)
    return _Mean(float(images.mean()), images, None, 1)


def _pairs(first: _Means, second: _Means) -> PairsOfRun:
    cells = sorted({cell for cell, _ in first} & {cell for cell, _ in second}, key=str)
    draws = sorted({draw for _, draw in (*first, *second)} - {_ANY}) or [_ANY]
    values: dict[tuple[Cell, str], tuple[float, Images | None]] = {}
    told: dict[Cell, list[tuple[str, float, float]]] = defaultdict(list)
    num_pairs = dropped = near = 0
    for cell, draw in itertools.product(cells, draws):
        own, other = (side.get((cell, draw), side.get((cell, _ANY))) for side in (first, second))
        if own is None or other is None:
            continue
        if own.value is None or other.value is None:
            dropped += 1
        elif own.chance is not None and max(own.value, other.value) <= own.chance:
            near += 1
        else:
            images = None if own.images is None or other.images is None else own.images - other.images
            values[cell, draw] = own.value - other.value, images
            told[cell].append((draw, own.value, other.value))
            num_pairs += max(own.num_trials, other.num_trials)
    copies = {two for one, two in itertools.combinations(told, 2) if _are_same(told[one], told[two])}
    return PairsOfRun({key: pair for key, pair in values.items() if key[0] not in copies}, num_pairs, dropped, near)


def _are_same(first: Sequence[tuple[str, float, float]], second: Sequence[tuple[str, float, float]]) -> bool:
    return len(first) == len(second) and all(
        one[0] == other[0] and max(abs(one[1] - other[1]), abs(one[2] - other[2])) < _SAME
        for one, other in zip(first, second, strict=True)
    )
