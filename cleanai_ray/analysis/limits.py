"""The limits that a study states under `recommend`: what they bound, whether a trial meets them, and their words."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import polars as pl

from cleanai_ray.analysis.frames import StudyFrames, as_mapping
from cleanai_ray.analysis.numbers import counted, milliseconds, percent, size, times
from cleanai_ray.analysis.speed import where_timed

MAX_LOSS = "max_accuracy_loss"


@dataclass(frozen=True)
class Limit:
    """One kind of limit.

    Attributes:
        column: The column of `StudyFrames.ok` that it bounds.
        factor: What turns the value of the study file into the unit of the column.
        is_least: True if the column must be at least the limit.
        name: What it bounds, in words.
        write: Writes a value of the column.
    """

    column: str
    factor: float
    is_least: bool
    name: str
    write: Callable[[float], str]


LIMITS = {
    MAX_LOSS: Limit("loss_points", 1, False, "accuracy lost", lambda value: counted(f"{value:.2g}", "point")),
    "max_latency_ms": Limit("latency_ms", 1, False, "latency {where}", milliseconds),
    "min_speedup": Limit("speedup", 1, True, "speed-up {where}", times),
    "max_macs": Limit("macs_share", 1, False, "share of the MACs", lambda value: percent(value, 0)),
    "max_params": Limit("params_share", 1, False, "share of the parameters", lambda value: percent(value, 0)),
    "max_size_mb": Limit("size_bytes", 1e6, False, "size of the weights file", lambda value: size(value)),
}


def stated_limits(study: StudyFrames) -> dict[str, float]:
    """Return the limits that a study file states, by their keys under `recommend`, in its units."""
    return {
        name: float(value)
        for name, value in as_mapping(study.study.get("recommend")).items()
        if name in LIMITS and isinstance(value, (int, float))
    }


def meets(name: str, value: float) -> pl.Expr:
    """Return whether a row meets a limit; null where it was not measured."""
    limit = LIMITS[name]
    column = pl.col(limit.column)
    # A rounding error does not exceed a limit: 93 % - 92 % is 1.0000000000000009 points.
    slack = 1e-9 * max(1.0, abs(value) * limit.factor)
    return column >= value * limit.factor - slack if limit.is_least else column <= value * limit.factor + slack


def limit_name(study: StudyFrames, name: str) -> str:
    """Return what a limit bounds: `accuracy lost`, `latency at batch 1`."""
    return LIMITS[name].name.format(where=where_timed(study.target))


def limit_text(study: StudyFrames, name: str, value: float) -> str:
    """Return a limit in words: `accuracy lost at most 1 point`."""
    limit = LIMITS[name]
    bound = "least" if limit.is_least else "most"
    return f"{limit_name(study, name)} at {bound} {limit.write(value * limit.factor)}"


def write_beyond(name: str, found: float, limit: float) -> str:
    """Write what a trial has, in points with as many digits as tell it from a limit that it is not."""
    write = LIMITS[name].write
    if name != MAX_LOSS or found == limit or write(found) != write(limit):
        return write(found)
    digits = next((digits for digits in range(2, 6) if f"{found:.{digits}f}" != f"{limit:.{digits}f}"), 6)
    return f"{found:.{digits}f} points"
