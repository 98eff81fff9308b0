"""The speed that a report tells: that in the study's target, and without a target that at batch 1. One source for all.

Milliseconds, speed-ups and their intervals come from the same rounds of the same trial, so that they agree with each
other: `latency_ms_dense` over `latency_ms` is `speedup`.
"""

from __future__ import annotations

import polars as pl

BUSY = 2.0
"""A 90th percentile of at least this many medians: something else was running on the machine."""

PROMISE_TOLERANCE = 0.05
"""Share by which a speed-up may miss the one that was promised."""

SPEED_COLUMNS = ("speedup", "speedup_low", "speedup_high", "latency_ms", "latency_ms_dense", "time_share", "is_slower")


def target_of(results: pl.DataFrame) -> str | None:
    """Return the target that trials were timed in, in words; None where the study has none, or nothing was timed."""
    named = results["latency_target"].drop_nulls()
    return str(named[0]) if len(named) else None


def with_speed(trials: pl.DataFrame, target: str | None) -> pl.DataFrame:
    """Return trials with the columns of their speed, which are null where it was not measured.

    Args:
        trials: Rows of results.parquet.
        target: The target whose times count; None: those at batch 1.

    Returns:
        The trials with `SPEED_COLUMNS` and `speedup_promised`: the speed-up over the dense model with its 95 %
        interval, both medians in milliseconds, the share of the dense time, True if the model is slower than dense (its
        whole interval is below 1, or its speed-up where there is no interval), and the speed-up that the latency
        profile predicted or, without one, that a latency budget asked for.
    """
    prefix, milliseconds = (
        ("speedup_b1", "latency_ms_b1_p50") if target is None else ("speedup_target", "latency_ms_target")
    )
    own, dense = pl.col(milliseconds), pl.col(f"{milliseconds}_dense")
    speedup = pl.coalesce(prefix, dense / own)
    timed = trials.with_columns(
        speedup.alias("speedup"),
        pl.col(f"{prefix}_low").alias("speedup_low"),
        pl.col(f"{prefix}_high").alias("speedup_high"),
        own.alias("latency_ms"),
        pl.coalesce(own * speedup, dense).alias("latency_ms_dense"),
        (1 / speedup).alias("time_share"),
    )
    return timed.with_columns(
        (pl.coalesce("speedup_high", "speedup") < 1).fill_null(False).alias("is_slower"), _promised()
    )


def _promised() -> pl.Expr:
    predicted = pl.col("latency_ms_target_dense") / pl.col("latency_predicted_ms")
    limit = pl.col("requested_budget").str.extract(r"^latency=([0-9.eE+-]+)$").cast(pl.Float64, strict=False)
    return pl.coalesce("speedup_predicted", predicted, 1 / limit).alias("speedup_promised")


def where_timed(target: str | None) -> str:
    """Return where the speed was measured, as the end of a sentence: `in the target`, or `at batch 1`."""
    return "at batch 1" if target is None else "in the target"


def busy_rows(latency: pl.DataFrame, target: str | None) -> pl.DataFrame:
    """Return the timings whose 90th percentile is at least `BUSY` times their median, with the ratio as `busyness`.

    Args:
        latency: Rows of latency.parquet.
        target: The target whose times count; None: those at batch 1.
    """
    told = pl.col("target").is_not_null() if target else pl.col("target").is_null() & (pl.col("batch_size") == 1)
    ratio = (pl.col("latency_ms_p90") / pl.col("latency_ms_p50")).alias("busyness")
    return latency.filter(told).with_columns(ratio).filter(pl.col("busyness") >= BUSY)
