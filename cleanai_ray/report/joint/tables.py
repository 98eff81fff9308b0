"""The tables of a joint report."""

from __future__ import annotations

from collections.abc import Sequence

from cleanai_ray.analysis.frames import as_mapping
from cleanai_ray.analysis.joint.answers import JointRow, interval_text
from cleanai_ray.analysis.joint.choice import JointChoice
from cleanai_ray.analysis.joint.difference import LIKE_THESE, THESE
from cleanai_ray.analysis.joint.study import JointRun, JointStudy
from cleanai_ray.analysis.numbers import NONE, percent, signed
from cleanai_ray.report.blocks import Column, Table

_DIGEST = 8
"""Characters of a digest or a commit that are shown."""


def effects_table(rows: Sequence[JointRow], subject: str, *, with_answer: bool = True) -> Table:
    """Return a table of effects with both of their intervals.

    Args:
        rows: The effects.
        subject: Title of the column that says what is compared.
        with_answer: Whether the last column answers yes or no; else it says if the effect is beyond doubt.
    """
    columns = (
        Column("", 0.12),
        Column(subject, 0.24),
        Column("effect", 0.08, True),
        Column("95 %, these networks", 0.14, True),
        Column("95 %, networks like these", 0.15, True),
        Column("could tell", 0.07, True),
        Column("p", 0.07, True),
        Column("answer" if with_answer else "beyond doubt", 0.13),
    )
    texts = tuple((row.amount, row.subject, *row.texts, _last(row, with_answer=with_answer)) for row in rows)
    decided = tuple(place for place, row in enumerate(rows) if row.found.told is not None)
    return Table(columns, texts, highlighted=decided, is_dense=True)


def _last(row: JointRow, *, with_answer: bool) -> str:
    if with_answer:
        return row.answer
    return row.untold if row.found.told is None else f"for {row.found.told}"


def choices_table(choices: Sequence[JointChoice]) -> Table:
    """Return what to take at each ratio or budget, with its difference from dense and from the runner-up."""
    columns = (
        Column("", 0.12),
        Column("take", 0.15),
        Column("top-1", 0.08, True),
        Column("dense", 0.08, True),
        Column("minus dense", 0.08, True),
        Column("95 %, these networks", 0.13, True),
        Column("95 %, networks like these", 0.14, True),
        Column("runner-up", 0.12),
        Column("minus runner-up", 0.1, True),
    )
    rows = []
    for one in choices:
        found, second = one.against_dense, one.against_runner_up
        rows.append(
            (
                one.amount,
                one.name,
                percent(one.accuracy, 2),
                percent(one.dense, 2),
                signed(found.effect),
                interval_text(found, THESE),
                interval_text(found, LIKE_THESE),
                one.runner_up or NONE,
                NONE if second is None else signed(second.effect),
            )
        )
    return Table(columns, tuple(rows), is_dense=True)


def networks_table(rows: Sequence[JointRow], networks: Sequence[str]) -> Table:
    """Return effects network by network."""
    width = 0.6 / max(len(networks), 1)
    columns = (Column("", 0.14), Column("", 0.26), *(Column(name, width, True) for name in networks))
    texts = tuple((row.amount, row.subject, *(signed(value) for _, value in row.found.by_network)) for row in rows)
    return Table(columns, texts, is_dense=True)


def runs_table(joint: JointStudy) -> Table:
    """Return a row per run: its trials, its dense model, and the digests that tell what it ran with."""
    columns = (
        Column("network", 0.18),
        Column("training", 0.09),
        Column("trials", 0.08, True),
        Column("failed", 0.08, True),
        Column("controls", 0.09, True),
        Column("dense top-1", 0.11, True),
        Column("weights", 0.12),
        Column("calibration", 0.12),
        Column("commit", 0.13),
    )
    return Table(columns, tuple(_run_row(run) for run in joint.runs), is_dense=True)


def _run_row(run: JointRun) -> tuple[str, ...]:
    digests = as_mapping(run.study.environment.get("digests"))
    return (
        run.network,
        run.training,
        str(len(run.study.results)),
        str(len(run.study.failed)),
        str(len(run.study.control_results)),
        percent(run.study.dense.get("accuracy"), 2),
        _short(digests.get("weights")),
        _short(digests.get("calibration")),
        _short(run.study.environment.get("commit")),
    )


def _short(value: object) -> str:
    return str(value)[:_DIGEST] if value else NONE
