"""The chapter on residual blocks that became their shortcuts: the price of every block, and those that went."""

from __future__ import annotations

import polars as pl

from cleanai_ray.analysis.frames import StudyFrames
from cleanai_ray.analysis.numbers import NONE, percent, plural, quantity, significant
from cleanai_ray.config.sweep import Budget
from cleanai_ray.registry import CHAPTERS
from cleanai_ray.report.blocks import Chapter, Column, Paragraph, Table
from cleanai_ray.report.sections.base import ChapterWriter, ReportContent

_COLUMNS = (
    Column("block", 0.24),
    Column("layers", 0.09, True),
    Column("MACs", 0.12, True),
    Column("of dense", 0.12, True),
    Column("KL, nats", 0.11, True),
    Column("repaired", 0.11, True),
    Column("price", 0.11, True),
    Column("removed", 0.1),
)
_NOTE = (
    "KL: mean KL(dense || model without this block alone) on calibration images; repaired: after a cheap "
    "repair of what is left. Price: that KL for all MACs of the dense model, at the rate at which it saves; the "
    "lowest goes first."
)


@CHAPTERS.register("residual_blocks")
class ResidualBlocks(ChapterWriter):
    """The prices of residual blocks, in the order of the network."""

    position = 45

    def write(self, content: ReportContent) -> Chapter | None:
        """Return the chapter; None where the study removes no block."""
        blocks = content.study.blocks.sort("block_index")
        if blocks.is_empty():
            return None
        words = _chosen_by_budget(blocks, content.study) if blocks["budgets"].is_not_null().any() else _chosen(blocks)
        draws = content.study.results.select("calibration_samples", "calibration_seed").n_unique()
        several = " These are the prices and the choice of the first draw of calibration samples." if draws > 1 else ""
        rows = tuple(
            (
                row["block"],
                str(len(row["layers"] or ())),
                quantity(row["macs"]),
                percent(row["macs_share"]),
                significant(row["divergence"], 2),
                NONE if row["divergence_repaired"] is None else significant(row["divergence_repaired"], 2),
                significant(row["price"], 2),
                ", ".join(row["budgets"] or ()) or ("yes" if row["is_removed"] else ""),
            )
            for row in blocks.iter_rows(named=True)
        )
        chosen = tuple(place for place, row in enumerate(blocks["is_removed"]) if row)
        table = Table(_COLUMNS, rows, highlighted=chosen)
        return Chapter("Residual blocks", (Paragraph(words + several), table, Paragraph(_NOTE, is_small=True)))


def _chosen(blocks: pl.DataFrame) -> str:
    """Return in words which blocks every trial loses."""
    gone = blocks.filter(pl.col("is_removed"))
    return (
        f"{len(gone)} of {plural(len(blocks), 'residual block')} "
        f"{'is' if len(gone) == 1 else 'are'} removed in every trial, before any layer is narrowed: "
        f"{', '.join(gone['block'])}. A removed block is its shortcut, plus the mean of what its branch gave. So "
        f"{percent(float(gone['macs_share'].sum()))} of the dense model's MACs go."
    )


def _chosen_by_budget(blocks: pl.DataFrame, study: StudyFrames) -> str:
    """Return in words which blocks the trials of each budget lose."""
    limits = (study.study.get("sweep") or {}).get("budgets") or ()  # study.yaml may be missing
    known = blocks["budgets"].drop_nulls().explode().unique().sort()
    found = {}
    for budget in [str(Budget(**limit)) for limit in limits] or known:
        names = [row["block"] for row in blocks.iter_rows(named=True) if budget in (row["budgets"] or ())]
        found[budget] = ", ".join(names) or "none pays"
    choices = "; ".join(f"{budget}: {names}" for budget, names in found.items())
    return (
        "Each budget is spent on residual blocks as well as on narrower layers, where a block costs less: "
        f"{choices}. A removed block is its shortcut, plus the mean of what its branch gave. Blocks were judged on "
        "calibration images held back, with layers narrowed to the rest of the budget."
    )
