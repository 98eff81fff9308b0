"""A model's sensitivity to the narrowing of each dependency group, from second moments and without labels."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from cleanai_ray.errors import CleanAIError, PruningError
from cleanai_ray.graph.graph import ChannelGraph, ChannelGroup
from cleanai_ray.importance.base import readers
from cleanai_ray.importance.curves import GroupCurve, SensitivityCurves
from cleanai_ray.repair.auto import split_images
from cleanai_ray.repair.images import Batch, device_of, read_images
from cleanai_ray.repair.moments import ConsumerMoments, collect_moments
from cleanai_ray.sensitivity.attention import balanced_errors
from cleanai_ray.sensitivity.elimination import Reading, Removals, eliminate_together
from cleanai_ray.sensitivity.neighbours import estimate, fallback_order, probed_numbers
from cleanai_ray.sensitivity.probe import Probe
from cleanai_ray.sensitivity.readings import group_readings, reading_features
from cleanai_ray.tasks.base import Task, find_task

PROBED_SHARES = (1 / 6, 1 / 3, 1 / 2, 2 / 3)
"""Shares of a group's units that are removed to measure what its error does to the model's output."""

MAX_PROBE_IMAGES = 256
"""Twice as many change 1 to 3 of 140 removed channels of ResNet-20 at half of its MACs, and take a quarter longer."""
MAX_PROBE_PASSES = 12288
"""Image passes of all probes together: 83 images of a ResNet-50, whose 148 probes cost as much for each image as the
calibration of a hundred."""
_LEAST_PROBE_IMAGES = 32


def measure_sensitivity(
    model: nn.Module,
    example_inputs: Tensor | tuple[Tensor, ...],
    batches: Iterable[Batch],
    *,
    ignored_layers: Sequence[str] = (),
    ridge: float = 1e-3,
    task: str | Task = "classification",
    check: bool = True,
) -> SensitivityCurves:
    """Measure the cost of narrowing each dependency group of a model. No labels are used; the model is left as it was.

    A fifth of the images (at most MAX_PROBE_IMAGES, fewer if there are many groups) measures what a group does to the
    output; the rest give the second moments. A group that cannot be measured is weighed by its neighbours, and its
    curve says why.

    Args:
        model: The dense model.
        example_inputs: One input batch, or a tuple that holds just it, on the model's device.
        batches: Calibration inputs [N, ...] or (inputs, targets).
        ignored_layers: Module names that keep their output width, with all below them.
        ridge: Regularisation, as a share of the mean variance of a layer's inputs.
        task: What the model is for: a name of `cleanai_ray.registry.TASKS`, or a task.
        check: Whether each group is tried before it is narrowed; as in the calls of `prune`.

    Raises:
        PruningError: When the model cannot be traced, or no layer with weights reads a group.
        CalibrationError: When there are no images, or a batch cannot be run.
    """
    task = find_task(task)
    ignored = dict.fromkeys([*ignored_layers, *task.ignored_layers(model)])
    graph = ChannelGraph(task.network(model), example_inputs, tuple(ignored), check=check)
    working, held = split_images(read_images(batches))
    features = reading_features(graph)
    moments = collect_moments(graph.model, working or held, layers=list(features), features=features)
    return measure_curves(graph, moments, probe_images(held or working), ridge=ridge)


def probe_images(images: Sequence[Tensor]) -> list[Tensor]:
    """Return the first MAX_PROBE_IMAGES images, in batches."""
    return _first(images, MAX_PROBE_IMAGES)


def _first(images: Sequence[Tensor], number: int) -> list[Tensor]:
    """Return the first images of some batches, in batches of as many."""
    if not images:
        return []
    size = max(len(batch) for batch in images)
    return list(torch.cat(list(images))[:number].split(size))


def measure_curves(
    graph: ChannelGraph,
    moments: ConsumerMoments,
    images: Sequence[Tensor],
    *,
    ridge: float = 1e-3,
) -> SensitivityCurves:
    """Eliminate the units of every group, and measure what a group's error does to the model's output.

    A group that cannot be eliminated, or whose divergence cannot be measured, is weighed by its neighbours; its curve
    says why.

    Args:
        graph: The graph of the dense model, at full width. Its model is changed meanwhile, and put back.
        moments: Moments of what the consumers read, for the features of `reading_features`.
        images: Images to measure the divergence on; without any, every group weighs the same. Of a network of many
            groups the first ones will do, so that all probes together take at most MAX_PROBE_PASSES passes.
        ridge: Regularisation, as a share of the mean variance of a consumer's inputs.

    Raises:
        PruningError: When no convolution, linear or attention layer reads a group, or no group can be measured.
    """
    readings = {group.name: group_readings(graph, group, moments) for group in graph.groups}
    for name, found in readings.items():
        if not found:
            raise PruningError(
                f"reconstruction finds no convolution, linear or attention layer that reads layer '{name}'; "
                "add it to ignored_layers, or choose another method"
            )
    groups = list(graph.groups)
    num_probes = len(groups) * len(PROBED_SHARES)
    images = _first(images, max(_LEAST_PROBE_IMAGES, MAX_PROBE_PASSES // max(1, num_probes)))
    probe = Probe(graph.model, moments, images, ridge) if images else None
    if probe is not None:
        groups.sort(key=lambda group: probe.place(list(readings[group.name])))
    # Inverses of second moments need float64, which all CUDA devices have; those that compute it at 1/64 of their speed
    # (0.3 to 1.3 TFLOP/s) still do more than the cores beside them (60 GFLOP/s each).
    device = device_of(graph.model) if device_of(graph.model).type == "cuda" else torch.device("cpu")
    removals = eliminate_together([list(readings[group.name].values()) for group in groups], ridge=ridge, device=device)
    curves = [
        _measure(group, readings[group.name], found, probe, device)
        for group, found in zip(groups, removals, strict=True)
    ]
    failed = [curve for curve in curves if curve.estimated is not None]
    if failed and not any(curve.estimated is None and curve.order for curve in curves):
        raise PruningError(f"the sensitivity of no layer can be measured; of '{failed[0].name}': {failed[0].estimated}")
    found_curves = {curve.name: curve for curve in estimate(curves, PROBED_SHARES)}
    return SensitivityCurves(groups={group.name: found_curves[group.name] for group in graph.groups})


def _measure(
    group: ChannelGroup,
    readings: Mapping[str, Reading],
    removals: Removals | Exception,
    probe: Probe | None,
    device: torch.device,
) -> GroupCurve:
    """Return the curve of a group, with the reason in `estimated` if it lacks its errors or its probes."""
    curve = GroupCurve(
        name=group.name,
        num_channels=group.num_channels,
        num_blocks=group.num_blocks,
        whole_heads=group.whole_heads,
        order=fallback_order(list(readings.values())),
        errors=(),
    )
    try:
        if isinstance(removals, Exception):
            raise removals
        order, errors = removals
        if any(member.type == "HeadChannels" for member in readers(group)):
            errors = balanced_errors(next(iter(readings.values())))
        else:
            readings = {name: reading.to(device) for name, reading in readings.items()}
        if not np.isfinite(errors).all():
            return replace(curve, estimated="its joint elimination gives errors that are not finite")
        curve = replace(curve, order=tuple(order), errors=tuple(errors))
        if probe is None:
            return curve
        numbers = probed_numbers(curve.num_units, PROBED_SHARES)
        probes = [(number, probe.measure(readings, curve.order[:number])) for number in numbers]
    except torch.OutOfMemoryError:  # Another time there may be room; the estimate would be kept.
        raise
    except (CleanAIError, RuntimeError, ArithmeticError, ValueError) as error:
        return replace(curve, estimated=" ".join(str(error).split()))
    if not np.isfinite([value for _, value in probes]).all():
        return replace(curve, estimated="without some of its channels, the model's output is not finite")
    return replace(curve, probes=tuple(probes))
