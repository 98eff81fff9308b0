"""Pairs of two sides within one run: the trials of a side are averaged in every cell and draw of the images."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

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
"""The draw, and the number, of the images of trials that read no calibration images: they stand beside every draw."""

_DRAW = "draw "

_SAME = 1e-9


@dataclass(frozen=True)
class PairsOfRun:
    """The pairs of one run.

    Attributes:
        values: By cell and draw, the difference in points, and the same image by image, [N], where that is known.
        num_pairs: Pairs of trials.
        num_dropped: Draws that were left out because a trial failed.
        num_near_chance: Draws that were left out because both models are near chance.
        num_unknown: Draws that were left out because the single images of a trial are not known.
        grain: Smallest step of a value; 0 where that is not known.
    """

    values: Mapping[tuple[Cell, str], tuple[float, Images | None]]
    num_pairs: int = 0
    num_dropped: int = 0
    num_near_chance: int = 0
    num_unknown: int = 0
    grain: float = 0.0


@dataclass(frozen=True)
class _Mean:
    """One side in one cell and draw: its mean accuracy in points, and that of each image; None if not known.

    `is_failed` tells a value that is missing because a trial failed from one whose single images are not known.
    """

    value: float | None
    images: Images | None
    chance: float | None
    num_trials: int
    is_failed: bool = False


_Means = dict[tuple[Cell, str], _Mean]


def name_of_draw(row: Row) -> str:
    """Return the draw of a trial's calibration images: its seed alone, since fewer images of it are part of the more.

    The number of images is fixed, as a cell is.
    """
    return _ANY if row["draw"] is None else f"{_DRAW}{row['draw']}"


def is_of_images(draw: str) -> bool:
    """Return whether a replicate is a draw of calibration images, not a seed, or what needs none."""
    return draw.startswith(_DRAW)


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
        cell: The columns that make a cell, with the number of calibration images, which always does.
        mask: The images that count, [N]; None where single images are not known.
    """
    own = [row for row in rows if first(row)]
    others = [row for row in rows if callable(second) and second(row)]
    by_seed = all(row["draw"] is None for row in (*own, *others))
    means = _means(run, own, stage, cell, mask, by_seed=by_seed)
    if callable(second):
        found = _pairs(means, _means(run, others, stage, cell, mask, by_seed=by_seed))
    else:
        found = _pairs(means, dict.fromkeys(means, _dense(run, mask)))
    return replace(found, grain=_grain((*own, *others), mask))


def _grain(rows: Sequence[Row], mask: Bits | None) -> float:
    """Return the points that one image is worth; 0 where that is not known."""
    if mask is not None:
        return 100 / max(int(mask.sum()), 1)
    return max((row["grain"] for row in rows if row["grain"] is not None), default=0.0)


def _means(
    run: JointRun, rows: Sequence[Row], stage: str, cell: Sequence[str], mask: Bits | None, *, by_seed: bool
) -> _Means:
    grouped: dict[tuple[Cell, str], list[Row]] = defaultdict(list)
    for row in rows:
        size = _ANY if row["draw"] is None or row["samples"] is None else row["samples"]
        draw = f"seed {row['trial_seed']}" if by_seed else name_of_draw(row)
        grouped[(*(row[name] for name in cell), size), draw].append(row)
    return {key: _mean(run, members, stage, mask) for key, members in grouped.items()}


def _mean(run: JointRun, rows: Sequence[Row], stage: str, mask: Bits | None) -> _Mean:
    values, chance, count = [row[stage] for row in rows], rows[0]["chance"], len(rows)
    if any(value is None for value in values):
        return _Mean(None, None, chance, count, is_failed=True)
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
        return _Mean(None if accuracy is None else 100 * accuracy, None, None, 1, is_failed=accuracy is None)
    images: Images = np.asarray(100 * run.dense_hits[mask], dtype=np.float64)
    return _Mean(float(images.mean()), images, None, 1)


def _pairs(first: _Means, second: _Means) -> PairsOfRun:
    cells = sorted(_without_any({cell for cell, _ in (*first, *second)}), key=str)
    draws = sorted({draw for _, draw in (*first, *second)} - {_ANY}) or [_ANY]
    values: dict[tuple[Cell, str], tuple[float, Images | None]] = {}
    told: dict[Cell, list[tuple[str, float, float]]] = defaultdict(list)
    num_pairs = dropped = near = unknown = 0
    for cell, draw in itertools.product(cells, draws):
        own, other = (_beside(side, cell, draw) for side in (first, second))
        if own is None or other is None:
            continue
        if own.is_failed or other.is_failed:
            dropped += 1
        elif own.value is None or other.value is None:
            unknown += 1
        elif own.chance is not None and max(own.value, other.value) <= own.chance:
            near += 1
        else:
            images = None if own.images is None or other.images is None else own.images - other.images
            values[cell, draw] = own.value - other.value, images
            told[cell].append((draw, own.value, other.value))
            num_pairs += max(own.num_trials, other.num_trials)
    copies = {two for one, two in itertools.combinations(told, 2) if _are_same(told[one], told[two])}
    kept = {key: pair for key, pair in values.items() if key[0] not in copies}
    return PairsOfRun(kept, num_pairs, dropped, near, unknown)


def _without_any(cells: set[Cell]) -> set[Cell]:
    """Return cells without those of trials that read no images, where others of the same columns read some."""
    sized = {cell[:-1] for cell in cells if cell[-1] != _ANY}
    return {cell for cell in cells if cell[-1] != _ANY or cell[:-1] not in sized}


def _beside(side: _Means, cell: Cell, draw: str) -> _Mean | None:
    """Return the mean of a side in a cell and draw, or that of its trials which stand beside every one."""
    keys = itertools.product((cell, (*cell[:-1], _ANY)), (draw, _ANY))
    return next((side[key] for key in keys if key in side), None)


def _are_same(first: Sequence[tuple[str, float, float]], second: Sequence[tuple[str, float, float]]) -> bool:
    return len(first) == len(second) and all(
        one[0] == other[0] and max(abs(one[1] - other[1]), abs(one[2] - other[2])) < _SAME
        for one, other in zip(first, second, strict=True)
    )
