"""The costs and savings of quantisation after pruning."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import polars as pl

from cleanai_ray.analysis.frames import StudyFrames
from cleanai_ray.analysis.numbers import NONE, percent, plural, points, times
from cleanai_ray.report.blocks import Block, Column, Paragraph, Table

_BEFORE = ("accuracy_finetuned", "accuracy_repaired", "accuracy_pruned")
_NOTE = (
    "Each quantised model against itself in float: top-1 on the same images, and the file against the float weights. "
    "Speed-up over the dense float model, both run by what the brackets name; medians over the trials."
)


@dataclass(frozen=True)
class QuantizationCost:
    """The effect of one quantisation on the models of a study, each compared with itself in float.

    Attributes:
        name: int8 or bf16.
        num_trials: Quantised trials.
        mean_change: Mean change of top-1 accuracy, in [-1, 1]; negative where it costs.
        worst_change: The change of the trial that lost most.
        size_share: Median of the quantised file's bytes over those of the weights in float.
        speedup: Median speed-up over the dense model in float; None where nothing was timed.
        backend: Backend that ran both; None where nothing was timed.
    """

    name: str
    num_trials: int
    mean_change: float
    worst_change: float
    size_share: float
    speedup: float | None
    backend: str | None


def quantization_costs(study: StudyFrames) -> tuple[QuantizationCost, ...]:
    """Return the costs and savings of each quantisation of a study; empty without quantised trials."""
    before = pl.coalesce(*_BEFORE)
    frame = study.ok.filter(pl.col("quantization") != "none").with_columns(
        (pl.col("accuracy_quantized") - before).alias("change"),
        (pl.col("size_bytes") / pl.col("size_bytes_float")).alias("share"),
    )
    costs = []
    for (name,), own in (
        frame.drop_nulls(["change", "share"]).sort("quantization").group_by(["quantization"], maintain_order=True)
    ):
        summary = own.select(
            mean=pl.mean("change"),
            worst=pl.min("change"),
            share=pl.median("share"),
            speedup=pl.median("speedup"),
            backend=pl.coalesce(pl.lit(study.target), "latency_backend").drop_nulls().first(),
        ).row(0, named=True)
        costs.append(
            QuantizationCost(
                str(name),
                len(own),
                summary["mean"],
                summary["worst"],
                summary["share"],
                summary["speedup"],
                summary["backend"],
            )
        )
    return tuple(costs)


def quantization_blocks(costs: Sequence[QuantizationCost]) -> list[Block]:
    """Return a sentence and a row for each quantisation."""
    columns = (
        Column("quantisation", 0.16),
        Column("trials", 0.1, True),
        Column("top-1, mean", 0.18, True),
        Column("top-1, worst", 0.18, True),
        Column("size of the file", 0.16, True),
        Column("speed-up", 0.22, True),
    )
    rows = tuple(
        (
            cost.name,
            str(cost.num_trials),
            points(cost.mean_change, 2),
            points(cost.worst_change, 2),
            percent(cost.size_share, 0),
            NONE if cost.speedup is None else f"{times(cost.speedup)} ({cost.backend})",
        )
        for cost in costs
    )
    sentences = " ".join(_sentence(cost) for cost in costs)
    return [Paragraph(sentences), Table(columns, rows), Paragraph(_NOTE, is_small=True)]


def _sentence(cost: QuantizationCost) -> str:
    return (
        f"{cost.name} changes top-1 by {points(cost.mean_change, 2)} on average over {plural(cost.num_trials, 'trial')}"
        f" (worst: {points(cost.worst_change, 2)}) and leaves {percent(cost.size_share, 0)} of the bytes."
    )
