"""The latency profile of a model, measured in this process for budgets of latency."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from cleanai_ray.config.evaluation import LatencySection
from cleanai_ray.config.messages import checked
from cleanai_ray.config.sections import PruningSection
from cleanai_ray.config.target import TargetSection
from cleanai_ray.evaluation.rounds import Timing
from cleanai_ray.graph.graph import ChannelGraph
from cleanai_ray.profile.clock import Clock, CompareModels, FunctionClock, TargetClock
from cleanai_ray.profile.fitted import LatencyProfile
from cleanai_ray.profile.measure import ProfileRequest, measure_profile
from cleanai_ray.profile.multiple import multiple_in
from cleanai_ray.profile.table import fit_profile
from cleanai_ray.pruning.granularity import AUTOMATIC, Granularity, granularity_for_time
from cleanai_ray.tasks.base import Task, find_task


def latency_profile(
    model: nn.Module,
    example_inputs: Tensor | tuple[Tensor, ...],
    *,
    target: Mapping[str, Any] | None = None,
    latency: Mapping[str, Any] | CompareModels | None = None,
    round_to: int | str | None = "auto",
    ignored_layers: Sequence[str] = (),
    task: str | Task = "classification",
    check: bool = True,
) -> LatencyProfile:
    """Measure how the time of a model falls as its layers get narrower, for several calls of `prune` with a budget.

    Each group of layers is timed alone at some widths, and all of them together at three. That takes a second or two
    for each group, more where a pass takes longer than 50 ms. The arguments are those of `prune`, and should be given
    to it likewise.

    Args:
        model: The dense model; its weights do not matter.
        example_inputs: One input batch, or a tuple that holds just it.
        target: Keys of `evaluation.target`.
        latency: Keys of `evaluation.latency`, or a function (dense, pruned) -> ratio of latencies.
        round_to: Widths are multiples of this.
        ignored_layers: Module names that keep their output width.
        task: What the model is for.
        check: Whether each group is tried first; as in the calls of `prune`.

    Raises:
        CleanAIError: When an argument is not allowed, the target cannot run here, or the model cannot be traced.
    """
    task, multiple = find_task(task), liked_multiple(round_to, target, example_inputs)
    return profile_model(
        task.network(model),
        example_inputs,
        clock_of(latency, target, example_inputs),
        granularity=granularity_for_time(checked(PruningSection, round_to=round_to), multiple=multiple),
        ignored_layers=[*ignored_layers, *task.ignored_layers(model)],
        restored=task.restored,
        check=check,
    )


def profile_model(
    model: nn.Module,
    example_input: Any,
    clock: Clock,
    *,
    granularity: Granularity = AUTOMATIC,
    ignored_layers: Sequence[str] = (),
    restored: Callable[[nn.Module], nn.Module] = lambda network: network,
    check: bool = True,
) -> LatencyProfile:
    """Measure the latency profile of a network in this process.

    Args:
        model: The dense network; it is not changed.
        example_input: Images [N, ...], or a tuple that holds just them, to trace the network with.
        clock: Times models.
        granularity: The granularity of widths.
        ignored_layers: Module names that keep their width.
        restored: Returns the model that a network is a view of, which is timed.
        check: Whether each group is tried before it is narrowed.

    Raises:
        PruningError: When the network cannot be traced.
        EvaluationError: When the target cannot run here, or not one of the models.
    """

    def time_models(models: Mapping[str, nn.Module]) -> Mapping[str, Timing]:
        return clock.time_models({name: restored(network) for name, network in models.items()})

    request = ProfileRequest(granularity=granularity)
    dense_ms, timed = measure_profile(
        model, example_input, request, time_models, ignored_layers=ignored_layers, check=check
    )
    graph = ChannelGraph(model, example_input, ignored_layers, check=check)
    return fit_profile(graph, granularity, dense_ms, timed)


def clock_of(
    latency: Mapping[str, Any] | CompareModels | None, target: Mapping[str, Any] | None, example_inputs: Any
) -> Clock:
    """Return the clock that a call of `prune` meets a latency budget by; the arguments are those of `prune`."""
    if callable(latency):
        return FunctionClock(latency)
    images = _images(example_inputs)
    section = checked(LatencySection, **(latency or {}))
    chosen = section.default_target if target is None else checked(TargetSection, **target)
    return TargetClock(chosen, section, images, images.device)


def liked_multiple(round_to: int | str | None, target: Mapping[str, Any] | None, example_inputs: Any) -> int | None:
    """Return the multiple of widths that the target of a call of `prune` likes, if it has to be known; else None."""
    if round_to != "auto" or target is None:
        return None
    return multiple_in(checked(TargetSection, **target), _images(example_inputs).device)


def _images(example_inputs: Tensor | tuple[Tensor, ...]) -> Tensor:
    return example_inputs if isinstance(example_inputs, Tensor) else example_inputs[0]
