"""A model's sensitivity to the narrowing of each dependency group, from second moments and without labels."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from cleanai_ray.errors import PruningError
from cleanai_ray.graph.graph import ChannelGraph, ChannelGroup, Member
from cleanai_ray.importance.base import readers
from cleanai_ray.importance.curves import GroupCurve, SensitivityCurves
from cleanai_ray.nn.attention import HeadChannels
from cleanai_ray.nn.consumers import (
    features_per_channel,
    is_consumer,
    read_weight,
    shift_output,
    write_weight,
)
from cleanai_ray.repair.auto import divergence, log_probabilities, split_images
from cleanai_ray.repair.compensation import solve_ridge
from cleanai_ray.repair.images import Batch, device_of, read_images
from cleanai_ray.repair.moments import ConsumerMoments, collect_moments
from cleanai_ray.repair.trace import trace_consumers
from cleanai_ray.sensitivity.attention import balanced_errors, fold_queries, query_reading
from cleanai_ray.sensitivity.elimination import Reading, eliminate
from cleanai_ray.tasks.base import Task, find_task

PROBED_SHARES = (1 / 6, 1 / 3, 1 / 2, 2 / 3)
"""Shares of a group's units that are removed to measure what its error does to the model's output."""

MAX_PROBE_IMAGES = 512


def measure_sensitivity(
    model: nn.Module,
    example_inputs: Tensor | tuple[Tensor, ...],
    batches: Iterable[Batch],
    *,
    ignored_layers: Sequence[str] = (),
    ridge: float = 1e-3,
    task: str | Task = "classification",
) -> SensitivityCurves:
    """Measure the cost of narrowing each dependency group of a model. No labels are used; the model is left as it was.

    A fifth of the images measures what a group does to the output; the rest give the second moments.

    Args:
        model: The dense model.
        example_inputs: One input batch, or a tuple that holds just it, on the model's device.
        batches: Calibration inputs [N, ...] or (inputs, targets).
        ignored_layers: Module names that keep their output width, with all below them.
        ridge: Regularisation, as a share of the mean variance of a layer's inputs.
        task: What the model is for: a name of `cleanai_ray.registry.TASKS`, or a task.

    Raises:
        PruningError: When the model cannot be traced, or no layer with weights reads a group.
        CalibrationError: When there are no images, or a batch cannot be run.
    """
    task = find_task(task)
    ignored = dict.fromkeys([*ignored_layers, *task.ignored_layers(model)])
    graph = ChannelGraph(task.network(model), example_inputs, tuple(ignored))
    working, held = split_images(read_images(batches))
    features = reading_features(graph)
    moments = collect_moments(graph.model, working or held, layers=list(features), features=features)
    return measure_curves(graph, moments, probe_images(held or working), ridge=ridge)


def probe_images(images: Sequence[Tensor]) -> list[Tensor]:
    """Return the first MAX_PROBE_IMAGES images, in batches."""
    size = max(len(batch) for batch in images)
    return list(torch.cat(list(images))[:MAX_PROBE_IMAGES].split(size))


def reading_features(graph: ChannelGraph) -> dict[str, int]:
    """Return the consumers that read a group of the graph, with the number of input features per channel."""
    found: dict[str, int] = {}
    for group in graph.groups:
        for name, members in _readers(graph, group).items():
            features = _features(graph, members)
            if features is not None:
                found[name] = features
    return found


def measure_curves(
    graph: ChannelGraph,
    moments: ConsumerMoments,
    images: Sequence[Tensor],
    *,
    ridge: float = 1e-3,
) -> SensitivityCurves:
    """Eliminate the units of every group, and measure what a group's error does to the model's output.

    Args:
        graph: The graph of the dense model, at full width.
        moments: Moments of what the consumers read, for the features of `reading_features`.
        images: Images to measure the divergence on; without any, every group weighs the same.
        ridge: Regularisation, as a share of the mean variance of a consumer's inputs.

    Raises:
        PruningError: When no convolution, linear or attention layer reads a group.
    """
    probe = _Probe(graph.model, moments, images, ridge) if images else None
    curves = {}
    for group in graph.groups:
        readings = _readings(graph, group, moments)
        if not readings:
            raise PruningError(
                f"reconstruction finds no convolution, linear or attention layer that reads layer '{group.name}'; "
                "add it to ignored_layers, or choose another method"
            )
        order, errors = eliminate(list(readings.values()), ridge=ridge)
        if isinstance(graph.model.get_submodule(next(iter(readings))), HeadChannels):
            errors = balanced_errors(next(iter(readings.values())))
        curve = GroupCurve(
            name=group.name,
            num_channels=group.num_channels,
            num_blocks=group.num_blocks,
            whole_heads=group.whole_heads,
            order=tuple(order),
            errors=tuple(errors),
        )
        curves[group.name] = curve if probe is None or not order else probe.measure(curve, readings)
    return SensitivityCurves(groups=curves)


def _readers(graph: ChannelGraph, group: ChannelGroup) -> dict[str, list[Member]]:
    """Return the layers that read a group, with the members that say in which inputs."""
    found: dict[str, list[Member]] = {}
    for member in readers(group):
        module = None if member.layer in graph.parameters else graph.model.get_submodule(member.layer)
        if module is not None and (is_consumer(module) or isinstance(module, (nn.Conv2d, HeadChannels))):
            found.setdefault(member.layer, []).append(member)
    return found


def _features(graph: ChannelGraph, members: Sequence[Member]) -> int | None:
    """Return the number of input features per channel of a layer; None if channels cannot be told apart."""
    first = np.concatenate([member.channels[member.roots == member.roots[0]] for member in members])
    kept = np.setdiff1d(np.arange(graph.width(members[0].layer, "in")), first)
    return features_per_channel(graph.model.get_submodule(members[0].layer), kept)


def _readings(graph: ChannelGraph, group: ChannelGroup, moments: ConsumerMoments) -> dict[str, Reading]:
    """Return the reading of a group by each layer whose moments are known."""
    members = readers(group)
    if all(member.type == "HeadChannels" for member in members):
        return query_reading(group, members, moments, graph.width(members[0].layer, "in") // group.num_channels)
    found = {}
    unit_of = group.unit_of.tolist()
    for name, members in _readers(graph, group).items():
        if name not in moments:
            continue
        features = graph.width(name, "in") // len(moments[name].mean)
        channels: list[set[int]] = [set() for _ in range(group.num_units)]
        for member in members:
            for channel, root in zip(member.channels.tolist(), member.roots.tolist(), strict=True):
                channels[unit_of[root]].add(channel // features)
        module, covariance = graph.model.get_submodule(name), moments[name].covariance
        refitted = is_consumer(module)
        found[name] = Reading(
            weight=read_weight(module, features) if refitted else _grouped_weight(module),
            covariance=covariance if refitted else covariance.diagonal().diag(),
            units=torch.tensor([sorted(unit) for unit in channels]),
        )
    return found


def _grouped_weight(module: nn.Module) -> Tensor:
    """Return the weight of a convolution in groups as [outputs of a group, channels of all groups, kernel positions].

    Repair does not refit such a layer, nor does elimination, which takes its channels to be uncorrelated.
    """
    assert isinstance(module, nn.Conv2d)
    weight = read_weight(module)
    parts = weight.unflatten(0, (module.groups, -1))
    return parts.transpose(0, 1).flatten(1, 2)


def _filling(channels: Tensor, values: Tensor) -> Callable[..., Tensor]:
    """Return a hook that sets some channels of an input [N, C, H, W] to constants."""

    def fill(module: nn.Module, args: tuple[Tensor, ...]) -> Tensor:
        constants = values[channels].to(args[0])[None, :, None, None]
        return args[0].index_copy(
            1, channels.to(args[0].device), constants.expand(len(args[0]), -1, *args[0].shape[2:])
        )

    return fill


class _Probe:
    """Removes part of one group at a time, compensates, and compares the outputs with the dense model's."""

    def __init__(self, model: nn.Module, moments: ConsumerMoments, images: Sequence[Tensor], ridge: float) -> None:
        self._model = model
        self._moments = moments
        self._images = images
        self._ridge = ridge
        self._reference = log_probabilities(model, images)
        traced = trace_consumers(model, images[0][:1].to(device_of(model)))
        self._consumers = {consumer.name: consumer for consumer in traced}

    def measure(self, curve: GroupCurve, readings: Mapping[str, Reading]) -> GroupCurve:
        """Return a group's curve, with measurements of its divergence."""
        numbers = {max(1, min(round(share * curve.num_units), len(curve.order))) for share in PROBED_SHARES}
        probes = []
        for number in sorted(numbers):
            model = copy.deepcopy(self._model)
            for name, reading in readings.items():
                self._fold(model, name, reading, reading.units[list(curve.order[:number])].flatten())
            probes.append((number, divergence(self._reference, log_probabilities(model, self._images))))
        return replace(curve, probes=tuple(probes))

    @torch.no_grad()
    def _fold(self, model: nn.Module, name: str, reading: Reading, removed: Tensor) -> None:
        """Make a consumer read only the channels that stay, compensated in closed form."""
        mean, covariance = self._moments[name].mean, reading.covariance
        module = model.get_submodule(name)
        if isinstance(module, HeadChannels):
            fold_queries(model, name, reading, removed)
            return
        if not is_consumer(module):
            module.register_forward_pre_hook(_filling(removed, mean))
            return
        kept = torch.as_tensor(np.setdiff1d(np.arange(len(mean)), removed.numpy()))
        mapping = solve_ridge(covariance[removed][:, kept], covariance[kept][:, kept], self._ridge)
        weight, lost = reading.weight.clone(), reading.weight[:, removed]
        weight[:, kept] += torch.einsum("orp,rk->okp", lost, mapping)
        weight[:, removed] = 0
        write_weight(module, weight)
        shift_output(model, self._consumers[name], lost.sum(dim=2) @ (mean[removed] - mapping @ mean[kept]))
