"""Controls of several runs beside what is chosen: whether what pruning gives could be had without it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

from cleanai_ray.analysis.cells import gather
from cleanai_ray.analysis.frames import as_mapping
from cleanai_ray.analysis.joint.answers import JointRow
from cleanai_ray.analysis.joint.choice import JointChoice
from cleanai_ray.analysis.joint.evidence import compare_trials
from cleanai_ray.analysis.joint.pairs import DENSE, Side
from cleanai_ray.analysis.joint.study import JointStudy, Row

_NAMES = {
    "scratch": "the same architecture trained from scratch",
    "narrow": "a narrower network trained from scratch",
    "dense_finetuned": "dense with the same fine-tuning",
    "torch_pruning": "torch-pruning's magnitude, batch norm recalibrated",
}
_TRAINED_ANEW = ("scratch", "narrow")
_FINETUNED = "dense_finetuned"


def compare_with_controls(joint: JointStudy, choices: Sequence[JointChoice]) -> tuple[JointRow, ...]:
    """Return pruned models minus controls, on the images that decided nothing; all intervals hold at once.

    Beside a control of one ratio or budget stands the method whose widths the study gives it (`widths_of`), else what
    is chosen there; beside the fine-tuned dense model, what is chosen at each ratio or budget. That model itself is
    compared with the dense one.
    """
    controls = [_controls(joint, place) for place in range(len(joint.runs))]
    trials = [(*own, *others) for own, others in zip(joint.trials, controls, strict=True)]
    kinds = set.intersection(*({row["control"] for row in rows} for rows in controls))
    found: list[JointRow] = []
    for kind in [kind for kind in _NAMES if kind in kinds]:
        for choice in choices:
            side, name = _beside(joint, kind, choice)
            control = _control(kind, None if kind == _FINETUNED else choice.amount)
            found += _compare(joint, trials, choice.amount, (name, side), (kind, control))
        if kind == _FINETUNED:
            found += _compare(joint, trials, "no pruning", (_NAMES[kind], _control(kind, None)), (DENSE, DENSE))
    shown = sum(row.found.narrowest is not None for row in found)
    return tuple(replace(row, found=row.found.among(shown)) for row in found)


def _controls(joint: JointStudy, place: int) -> tuple[Row, ...]:
    """Return the controls of a run, with the columns of its trials and their kind.

    A control of one draw of the calibration images, or of none, stands beside the trials of every draw.
    """
    run = joint.runs[place]
    results = run.study.control_results
    if results.is_empty():
        return ()
    kinds = dict(results.select("trial_id", "control").rows())
    rows = gather({run.name: replace(run.study, results=results)}).to_dicts()
    draws: dict[str, set[object]] = defaultdict(set)
    for row in rows:
        row["control"] = kinds[row["trial_id"]]
        draws[row["control"]].add(row["draw"])
    for row in rows:
        if len(draws[row["control"]]) == 1:
            row["draw"] = None
    return tuple(rows)


def _control(kind: str, amount: str | None) -> Side:
    return lambda row: row.get("control") == kind and amount in (None, row["amount"])


def _beside(joint: JointStudy, kind: str, choice: JointChoice) -> tuple[Side, str]:
    """Return the pruned trials beside a control, and their name."""
    key, widths = choice.key, _widths_of(joint)
    if kind in _TRAINED_ANEW and widths is not None:
        key = (widths, *choice.key[1:])

    def side(row: Row) -> bool:
        own = tuple(row[name] for name in ("label", "mode", "steps"))
        return "control" not in row and row["amount"] == choice.amount and own == key

    return side, str(key[0])


def _widths_of(joint: JointStudy) -> str | None:
    sections = [as_mapping(as_mapping(run.study.study.get("sweep")).get("controls")) for run in joint.runs]
    found = {section.get("widths_of") for section in sections}
    return found.pop() if len(found) == 1 else None


def _compare(
    joint: JointStudy,
    trials: Sequence[Sequence[Row]],
    amount: str,
    first: tuple[str, Side],
    second: tuple[str, Side | str],
) -> list[JointRow]:
    found = compare_trials(joint, trials, first[1], second[1], cell=(), images=joint.told_images)
    name = _NAMES.get(second[0], second[0])
    return [] if found is None else [JointRow(amount, f"{first[0]} against {name}", found)]
