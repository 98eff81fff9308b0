"""The chapter on speed in the target: for every trial, the speed-up that was promised and the one that was reached."""

from __future__ import annotations

import polars as pl

from cleanai_ray.analysis.frames import StudyFrames
from cleanai_ray.analysis.intervals import speedup_of
from cleanai_ray.analysis.numbers import NONE, change, milliseconds, percent, plural, signed, times
from cleanai_ray.analysis.speed import BUSY, PROMISE_TOLERANCE, busy_rows
from cleanai_ray.registry import CHAPTERS
from cleanai_ray.report.blocks import Block, Chapter, Column, Paragraph, Table
from cleanai_ray.report.pdf.style import MOST_TRIALS
from cleanai_ray.report.sections.base import ChapterWriter, ReportContent

_COLUMNS = (
    Column("method", 0.2),
    Column("asked for", 0.13),
    Column("top-1", 0.09, True),
    Column("MACs", 0.07, True),
    Column("promised", 0.1, True),
    Column("reached", 0.19, True),
    Column("missed by", 0.1, True),
    Column("ms", 0.11, True),
    Column("dense", 0.11, True),
    Column("id ends in", 0.1),
)
_NOTE = (
    "The fastest first. Promised: the speed-up that the latency profile predicts for the plan or, without a profile, "
    "the one that a latency budget asks for. Reached: the dense model's median time over the pruned one's, with its "
    "95 % interval (bootstrap over rounds in which both took turns); the milliseconds are those of the same rounds. "
    "Missed by: reached over promised."
)
_NO_PROMISE = (
    "No speed-up was promised: the study asks for no latency, and has no latency profile. `cleanai profile STUDY` "
    "measures one, from which the time of every trial is predicted."
)


@CHAPTERS.register("speed")
class Speed(ChapterWriter):
    """Speed-up promised and reached, in the study's target."""

    position = 35

    def write(self, content: ReportContent) -> Chapter | None:
        """Return the chapter; None where the study has no target, or no trial was timed in it."""
        study = content.study
        timed = study.ok.drop_nulls("speedup").sort(["speedup", "trial_id"], descending=[True, False])
        if study.target is None or timed.is_empty():
            return None
        texts = [_conditions(study, timed), _kept_promises(timed), _slower(timed), _busy(study)]
        blocks: list[Block] = [Paragraph(text) for text in texts if text]
        blocks += [_table(timed), Paragraph(_note(timed), is_small=True)]
        return Chapter("Speed", tuple(blocks))


def _conditions(study: StudyFrames, timed: pl.DataFrame) -> str:
    alone = bool(timed["latency_exclusive"].fill_null(False).all())
    how = "one model at a time, with a whole GPU or all cores to itself" if alone else "beside other trials"
    left = len(study.ok) - len(timed)
    missing = f" {plural(left, 'trial')} could not be timed in it." if left else ""
    return f"Target: {study.target}; timed {how}.{missing}"


def _kept_promises(timed: pl.DataFrame) -> str:
    """Return how many speed-ups came within the tolerance of the promise, and the one that missed it most."""
    promised = timed.drop_nulls("speedup_promised").with_columns(
        (pl.col("speedup") / pl.col("speedup_promised") - 1).alias("miss")
    )
    if promised.is_empty():
        return _NO_PROMISE
    kept = promised.filter(pl.col("miss").abs() <= PROMISE_TOLERANCE)
    worst = promised.sort(pl.col("miss").abs(), descending=True).row(0, named=True)
    return (
        f"{len(kept)} of {plural(len(promised), 'promised speed-up')} {'was' if len(kept) == 1 else 'were'} reached "
        f"within {percent(PROMISE_TOLERANCE, 0)}; the farthest off, {worst['trial_id']}, was promised "
        f"{times(worst['speedup_promised'])} and reached {times(worst['speedup'])} "
        f"({signed(100 * worst['miss'], 1)} %)."
    )


def _slower(timed: pl.DataFrame) -> str:
    slower = int(timed["is_slower"].sum())
    if not slower:
        return "No trial is slower than the dense model."
    return f"{plural(slower, 'trial')} {'is' if slower == 1 else 'are'} slower than the dense model; see Risks."


def _busy(study: StudyFrames) -> str:
    busy = busy_rows(study.latency, study.target)
    if busy.is_empty():
        return ""
    count = busy["trial_id"].n_unique()
    return (
        f"The machine was busy while {plural(count, 'trial')} {'was' if count == 1 else 'were'} timed: a 90th "
        f"percentile of {BUSY:g} medians or more; see Risks."
    )


def _table(timed: pl.DataFrame) -> Table:
    rows = [
        (
            trial["label"],
            trial["amount"],
            percent(trial["accuracy"]),
            percent(trial["macs_share"], 0),
            times(trial["speedup_promised"]),
            speedup_of(trial),
            NONE if trial["speedup_promised"] is None else change(trial["speedup"], trial["speedup_promised"]),
            milliseconds(trial["latency_ms"]),
            milliseconds(trial["latency_ms_dense"]),
            str(trial["trial_id"]).rpartition("-")[2][-8:],
        )
        for trial in timed.head(MOST_TRIALS).iter_rows(named=True)
    ]
    return Table(_COLUMNS, tuple(rows), is_dense=True)


def _note(timed: pl.DataFrame) -> str:
    rest = len(timed) - MOST_TRIALS
    return _NOTE if rest <= 0 else f"{_NOTE} {rest} slower ones are left out; report.html lists them under Every trial."
