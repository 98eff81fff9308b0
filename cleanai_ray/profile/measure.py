"""The measurement of a latency profile: pruned models timed in a target, beside the dense one.

1. Each group alone is narrowed step by step; all its widths and the dense model, twice, take turns.
2. All groups are narrowed by the same share, and by shares drawn at random, likewise.
3. Times count as ratios to the mean of the dense model's two in the same rounds, so that a machine that gets slower
   meanwhile does not look like a wide layer. The 20th percentile is taken of all: other processes only ever add to a
   time, and what one group saves is less than what they add. How much the dense model's two differ tells the noise.

Channels are the first ones of each group, since time does not depend on which are kept. A width at which the model
would not run, or be wrong, is left out with a notice, as pruning leaves the width of such a group.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor, nn

from cleanai_ray.config.evaluation import LatencySection
from cleanai_ray.config.target import TargetSection
from cleanai_ray.errors import PruningError
from cleanai_ray.evaluation.rounds import DENSE, Timing
from cleanai_ray.graph.graph import ChannelGraph
from cleanai_ray.graph.group import ChannelGroup
from cleanai_ray.nn.copying import copied
from cleanai_ray.nn.notices import notice
from cleanai_ray.profile.fitted import TimedModel
from cleanai_ray.profile.widths import NUM_CHECKS, UNIFORM_SHARES, drawn, grid, uniform
from cleanai_ray.pruning.granularity import AUTOMATIC, Granularity

_AGAIN = "dense again"

TimeModels = Callable[[Mapping[str, nn.Module]], Mapping[str, Timing]]
"""Times models by name in turns, one of them `dense`, in milliseconds."""


@dataclass(frozen=True, kw_only=True)
class ProfileRequest:
    """The amount of measuring.

    Attributes:
        granularity: The granularity of widths.
        points: Most widths of each group.
    """

    granularity: Granularity = AUTOMATIC
    points: int = 6


def measure_profile(
    model: nn.Module,
    example_input: Tensor,
    request: ProfileRequest,
    time_models: TimeModels,
    *,
    ignored_layers: Sequence[str] = (),
    check: bool = True,
) -> tuple[float, list[TimedModel]]:
    """Time narrowed models, and return the dense model's milliseconds and every model that was timed.

    Args:
        model: The dense model; it is not changed.
        example_input: Images [N, ...], to trace the model with.
        request: How much to measure.
        time_models: Times models in turns, in the target.
        ignored_layers: Module names that keep their width.
        check: Whether each group is tried before it is narrowed.

    Raises:
        PruningError: When the model cannot be traced.
        EvaluationError: When the target cannot run here, or not one of the models.
    """
    graph = ChannelGraph(model, example_input, ignored_layers, check=check)
    groups, dense = graph.groups, copied(graph.model)
    channels = {group.name: group.num_channels for group in groups}
    dense_times: list[float] = []
    found: list[TimedModel] = []

    def time_all(kind: str, models: Mapping[str, nn.Module], widths: Mapping[str, Mapping[str, int]]) -> None:
        timings = time_models({DENSE: dense, **models, _AGAIN: dense})
        first, second = timings[DENSE].fast, timings[_AGAIN].fast
        dense_times.append((first + second) / 2)
        found.extend(
            TimedModel(kind=kind, widths=widths[name], ratio=timings[name].fast / dense_times[-1]) for name in models
        )
        if kind == "group":
            (name,) = next(iter(widths.values()))
            dense_width = {name: channels[name]}
            found.append(TimedModel(kind="repeat", widths=dense_width, ratio=second / first))

    for group in groups:
        widths = grid(group, request.granularity, request.points)
        if widths:
            chosen, models = _alone(graph.rebuild(model), group.name, widths)
            if models:
                time_all("group", models, chosen)
    for kind, chosen in (("uniform", _uniform(groups, request)), ("check", _drawn(groups, request))):
        chosen, models = _together(lambda: graph.rebuild(model), chosen)
        if models:
            time_all(kind, models, chosen)
    return float(np.median(dense_times)) if dense_times else time_models({DENSE: dense})[DENSE].fast, found


_Chosen = dict[str, dict[str, int]]


def _alone(graph: ChannelGraph, name: str, widths: Sequence[int]) -> tuple[_Chosen, dict[str, nn.Module]]:
    """Narrow one group step by step; return widths and models by name, without those from the first that fails on."""
    models: dict[str, nn.Module] = {}
    for width in reversed(widths):
        try:
            graph.remove(_surpluses(graph, {name: width}))
        except PruningError as error:
            notice(f"latency profile: layer '{name}' is not timed at {width} channels or fewer: {error}")
            break
        models[str(width)] = _copy_of(graph)
    return {str(width): {name: width} for width in widths if str(width) in models}, models


def _together(
    rebuild: Callable[[], ChannelGraph], chosen: Mapping[str, Mapping[str, int]]
) -> tuple[_Chosen, dict[str, nn.Module]]:
    """Narrow several groups at once; return widths and models by name, without groups that fail there."""
    left: _Chosen = {}
    models: dict[str, nn.Module] = {}
    for name, widths in chosen.items():
        graph = rebuild()
        try:
            while told := graph.try_to_remove(_surpluses(graph, widths)):
                for sentence in told:
                    notice(f"latency profile: {sentence}")
        except PruningError as error:
            notice(f"latency profile: groups are not timed together at '{name}': {error}")
            continue
        own = {group.name: widths[group.name] for group in graph.groups if group.name in widths}
        if own:
            left[name], models[name] = own, _copy_of(graph)
    return left, models


def _surpluses(graph: ChannelGraph, widths: Mapping[str, int]) -> dict[str, np.ndarray]:
    """Return the channels beyond widths that are at most the present ones, by group."""
    return {group.name: _surplus(group, widths[group.name]) for group in graph.groups if group.name in widths}


def _copy_of(graph: ChannelGraph) -> nn.Module:
    narrow = copied(graph.model)
    for parameter in narrow.parameters():
        parameter.grad = None
    return narrow


def _surplus(group: ChannelGroup, width: int) -> np.ndarray:
    """Return the channels beyond a width, a whole number of units: the last units of a group."""
    return group.expand(np.arange(width // group.num_blocks, group.num_units))


def _uniform(groups: Sequence[ChannelGroup], request: ProfileRequest) -> dict[str, dict[str, int]]:
    dense = {group.name: group.num_channels for group in groups}
    chosen = {f"{share:g}": uniform(groups, request.granularity, share) for share in UNIFORM_SHARES}
    return {name: widths for name, widths in chosen.items() if widths != dense}


def _drawn(groups: Sequence[ChannelGroup], request: ProfileRequest) -> dict[str, dict[str, int]]:
    dense = {group.name: group.num_channels for group in groups}
    chosen = {f"check {seed}": drawn(groups, request.granularity, seed) for seed in range(NUM_CHECKS)}
    return {name: widths for name, widths in chosen.items() if widths != dense}


def profile_conditions(target: TargetSection, section: LatencySection, device_name: str) -> dict[str, Any]:
    """Return the columns of profile.parquet that are the same in all rows of a profile."""
    return {"target": target.label, "num_runs": section.runs, "device_name": device_name}
