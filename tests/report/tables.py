"""Small tables of trials whose truth is known."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import polars as pl

from cleanai_ray.analysis.frames import StudyFrames
from cleanai_ray.storage import schemas

Accuracy = Callable[[str, float, str, int, int], float | None]
"""Method or method/metric, ratio, mode, steps and seed to an accuracy in per cent; None fails the trial."""


def study_of(
    accuracy: Accuracy,
    *,
    labels: tuple[str, ...],
    ratios: tuple[float, ...] = (0.3, 0.5),
    modes: tuple[str, ...] = ("local", "global"),
    steps: tuple[int, ...] = (1,),
    seeds: tuple[int, ...] = (0, 1, 2),
    dense: float = 93.0,
    num_evaluated: int | None = 10000,
    pruned: Accuracy | None = None,
    **parts: Any,
) -> StudyFrames:
    """Return a study of a grid; `pruned` is the accuracy before repair, and `accuracy` then that after it."""
    rows = []
    for label, ratio, mode, num_steps, seed in itertools.product(labels, ratios, modes, steps, seeds):
        method, _, metric = label.partition("/")
        value = accuracy(label, ratio, mode, num_steps, seed)
        row = {
            "trial_id": f"{method}-{metric}-{mode}-{ratio:g}-{num_steps}-{seed}",
            "status": schemas.FAILED if value is None else schemas.OK,
            "method": method,
            "coverage_metric": metric or None,
            "ratio": ratio,
            "mode": mode,
            "steps": num_steps,
            "seed": seed,
        }
        if value is not None:
            before = pruned(label, ratio, mode, num_steps, seed) if pruned else None
            row |= {
                "accuracy": value / 100,
                "accuracy_dense": dense / 100,
                "accuracy_pruned": (value if before is None else before) / 100,
                "accuracy_repaired": value / 100 if pruned else None,
                "num_evaluated": num_evaluated,
                "num_classes": 10,
            }
        rows.append(row)
    return StudyFrames(results=frame(rows, schemas.RESULTS), **{**empty_tables(), **parts})


def empty_tables() -> dict[str, pl.DataFrame]:
    """Return the other tables of a study, without rows."""
    layouts = {
        "layers": schemas.LAYERS,
        "coverage": schemas.coverage_schema(()),
        "history": schemas.HISTORY,
        "latency": schemas.LATENCY,
    }
    return {name: frame([], schema) for name, schema in layouts.items()}


def frame(rows: list[dict[str, Any]], schema: Any) -> pl.DataFrame:
    """Return rows as a polars frame of a schema."""
    found = pl.from_arrow(schemas.to_table(rows, schema))
    assert isinstance(found, pl.DataFrame)
    return found
