"""Plans and results of pruning as tables: before and after, as a whole, for each layer and for each group."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from cleanai_ray.display.tables import Grid, Summary, change, percent, share
from cleanai_ray.pruning.explain import HEADINGS, NUMBERS, asked_for, group_rows, total_rows
from cleanai_ray.tasks.base import Score

if TYPE_CHECKING:
    from cleanai_ray.pruning.plan import PruningPlan

_COSTS = ("", "dense", "pruned", "kept", "note")
_LAYERS = ("layer", "kind", "channels", "parameters", "MACs", "MACs kept")


def in_short(plan: PruningPlan) -> str:
    """Return a plan in one line: the model, how many groups become narrower, and what is left of its costs."""
    achieved = plan.achieved
    words = [f"{len(plan.removed)} of {len(plan.groups)} groups narrower"]
    words += [f"{len(plan.blocks)} blocks removed"] if plan.blocks else []
    for key, name in (("macs", "MACs"), ("params", "parameters")):
        if achieved.get(f"{key}_dense"):
            words.append(f"{percent(achieved[key] / achieved[f'{key}_dense'])} of the {name}")
    return f"{plan.model.get('class', 'model')}: {', '.join(words)}"


def summary_of_plan(plan: PruningPlan) -> Summary:
    """Return a plan as tables: the costs before and after, and what each group loses and why."""
    groups = Grid(
        columns=HEADINGS,
        rows=tuple(tuple(row) for row in group_rows(plan)),
        left=tuple(name for name in HEADINGS if name not in NUMBERS),
    )
    return Summary(_heading(plan), (_costs(plan, []), groups), plan.warnings)


def summary_of_result(
    plan: PruningPlan, layers: Sequence[Mapping[str, Any]], dense: Score | float | None, pruned: Score | float | None
) -> Summary:
    """Return a result as tables: the costs and the scores before and after, and every layer before and after.

    Args:
        plan: The plan.
        layers: Rows of layers.parquet.
        dense: The dense model's score, of `evaluate`, or its accuracy; None: not known.
        pruned: The pruned model's, likewise.
    """
    each = Grid(columns=_LAYERS, rows=tuple(map(_layer_row, layers)), left=("layer", "kind"))
    return Summary(_heading(plan), (_costs(plan, _score_rows(dense, pruned)), each), plan.warnings)


def _heading(plan: PruningPlan) -> str:
    return f"{plan.model.get('class', 'Model')}, pruned: {asked_for(plan.request)}"


def _costs(plan: PruningPlan, scores: Sequence[Sequence[str]]) -> Grid:
    rows = tuple(tuple(row) for row in (*total_rows(plan), *scores))
    return Grid(columns=_COSTS, rows=rows, left=("", "note"))


def _layer_row(layer: Mapping[str, Any]) -> tuple[str, ...]:
    return (
        layer["layer"],
        layer["kind"],
        change(layer["out_channels_dense"], layer["out_channels"]),
        change(layer["params_dense"], layer["params"]),
        change(layer["macs_dense"], layer["macs"]),
        share(layer["macs"], layer["macs_dense"]),
    )


def _score_rows(dense: Score | float | None, pruned: Score | float | None) -> list[list[str]]:
    known = [score for score in (dense, pruned) if score is not None]
    if not known:
        return []
    name = next((score.metric_name for score in known if not isinstance(score, (int, float))), "accuracy")
    texts = ["" if score is None else _score_text(score) for score in (dense, pruned)]
    note = ""
    if dense is not None and pruned is not None and _is_share(dense) and _is_share(pruned):
        note = f"{100 * (_value(pruned) - _value(dense)):+.2f} points"
    return [[name, *texts, "", note]]


def _value(score: Score | float) -> float:
    return float(score) if isinstance(score, (int, float)) else score.value


def _is_share(score: Score | float) -> bool:
    """Return whether a score is a share of 1, as accuracy is and perplexity is not."""
    return isinstance(score, (int, float)) or score.value == score.merit


def _score_text(score: Score | float) -> str:
    return percent(_value(score), 2) if _is_share(score) else f"{_value(score):.4g}"
