"""A latency profile as the rows of profile.parquet, and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from cleanai_ray.graph.graph import ChannelGraph
from cleanai_ray.profile.fitted import LatencyProfile, TimedModel
from cleanai_ray.profile.widths import step_of
from cleanai_ray.pruning.cost import CostModel
from cleanai_ray.pruning.granularity import Granularity

if TYPE_CHECKING:
    import polars as pl  # half a second, which pruning in Python does without


def fit_profile(
    graph: ChannelGraph, granularity: Granularity, dense_ms: float, timed: Sequence[TimedModel]
) -> LatencyProfile:
    """Fit the profile of a dense model.

    Args:
        graph: The dense model's graph.
        granularity: The granularity of the widths that were timed.
        dense_ms: The dense model's milliseconds.
        timed: The models that were timed.
    """
    channels = {group.name: group.num_channels for group in graph.groups}
    steps = {group.name: step_of(group, granularity) for group in graph.groups}
    return LatencyProfile(CostModel(graph), channels, steps, dense_ms, timed)


def profile_rows(
    graph: ChannelGraph,
    granularity: Granularity,
    dense_ms: float,
    timed: Sequence[TimedModel],
    conditions: Mapping[str, Any],
) -> list[dict[str, Any]]:
    """Return the rows of profile.parquet (`schemas.PROFILE`).

    Args:
        graph: The dense model's graph.
        granularity: The granularity of the widths that were timed.
        dense_ms: The dense model's milliseconds.
        timed: The models that were timed.
        conditions: Columns that are the same in all rows.
    """
    profile = fit_profile(graph, granularity, dense_ms, timed)
    places = {group.name: index for index, group in enumerate(graph.groups)}
    rows = []
    for number, model in enumerate(timed):
        predicted = profile.predict_widths(model.widths)
        for name, width in model.widths.items():
            group = graph.groups[places[name]]
            alone = profile.stairs[name].at(width) * dense_ms if model.kind == "group" else None
            rows.append(
                {
                    "kind": model.kind,
                    "model": number,
                    "group": name,
                    "group_index": places[name],
                    "num_channels": group.num_channels,
                    "multiple": step_of(group, granularity),
                    "width": width,
                    "milliseconds": dense_ms * model.ratio,
                    "milliseconds_dense": dense_ms,
                    "ratio": model.ratio,
                    "fitted_milliseconds": alone,
                    "predicted_milliseconds": predicted,
                    **conditions,
                }
            )
    return rows


def read_profile(
    table: pl.DataFrame,
    model: nn.Module,
    example_input: Tensor,
    granularity: Granularity,
    ignored_layers: Sequence[str] = (),
    check: bool = True,
) -> LatencyProfile:
    """Return the profile of a dense model from profile.parquet.

    Args:
        table: The table.
        model: The dense model, with any weights; it is not changed.
        example_input: Images [N, ...], to trace it with.
        granularity: The granularity of the widths that were timed.
        ignored_layers: Module names that keep their width.
        check: Whether each group is tried before it is narrowed, as when the table was made.

    Raises:
        PruningError: When the model cannot be traced.
    """
    timed = []
    for _, rows in table.group_by("model", maintain_order=True):
        widths = dict(zip(rows["group"], rows["width"], strict=True))
        timed.append(TimedModel(kind=rows["kind"][0], widths=widths, ratio=rows["ratio"][0]))
    graph = ChannelGraph(model, example_input, ignored_layers, check=check)
    return fit_profile(graph, granularity, float(table["milliseconds_dense"][0]), timed)
