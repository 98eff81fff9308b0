"""Pruning as a library: calibrate, prune, save, load. Without a file, and without Ray."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import safetensors
import safetensors.torch
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from cleanai_ray.artifacts import RunDirectory
from cleanai_ray.coverage.base import needs_sections
from cleanai_ray.errors import ArtifactError, PruningError
from cleanai_ray.evaluation.latency import compare_latency
from cleanai_ray.evaluation.weights import safetensors_bytes
from cleanai_ray.evaluation_section import LatencySection
from cleanai_ray.importance.base import create_method
from cleanai_ray.pruning.curves import SensitivityCurves
from cleanai_ray.pruning.graph import ChannelGraph
from cleanai_ray.pruning.latency_budget import prune_to_budget
from cleanai_ray.pruning.plan import PruningPlan
from cleanai_ray.pruning.pruner import Pruner, PruneResult, Remeasure, identify
from cleanai_ray.repair import repair as repair_model
from cleanai_ray.repair.consumers import add_biases
from cleanai_ray.sections import CalibrationSection, PruningSection, Section
from cleanai_ray.sensitivity import measure_sensitivity
from cleanai_ray.statistics import ActivationStatistics, calibrate
from cleanai_ray.statistics.calibration import Batch, Loss
from cleanai_ray.study import Trial
from cleanai_ray.study_messages import describe

S = TypeVar("S", bound=Section)
CompareModels = Callable[[nn.Module, nn.Module], float]

PLAN_FILE, WEIGHTS_FILE = "plan.json", "weights.safetensors"


def prune(
    model: nn.Module,
    example_inputs: Tensor | tuple[Tensor, ...],
    batches: Iterable[Batch] | None = None,
    *,
    method: str = "coverage",
    mode: str = "local",
    ratio: float | None = None,
    budget: Mapping[str, float] | None = None,
    coverage_metric: str | None = None,
    steps: int = 1,
    seed: int = 0,
    stats: ActivationStatistics | None = None,
    curves: SensitivityCurves | None = None,
    layer_ratios: Mapping[str, float] | None = None,
    ignored_layers: Sequence[str] = (),
    max_ratio: float = 0.9,
    round_to: int | str | None = None,
    min_channels: int = 1,
    method_options: Mapping[str, Any] | None = None,
    repair: bool | str = False,
    loss: Loss | None = None,
    latency: Mapping[str, Any] | CompareModels | None = None,
) -> PruneResult:
    """Return a smaller copy of a model, and the plan that made it. The model given is not changed.

    Args:
        model: The trained model.
        example_inputs: One input batch, or a tuple that holds just it, on the model's device.
        batches: Images [N, ...] or (images, targets). A generator is read into memory, since they may be read again.
        method: A name of `cleanai list methods`.
        mode: `local`, `global` or `isomorphic`.
        ratio: Share of channels to remove, in (0, 1). Either this or `budget`.
        budget: What the model may cost: {"macs": 0.5} of the dense one, or params, or latency; or {"size_mb": 10}.
        coverage_metric: For coverage, adaptive and a hybrid of them; `normalized_mean` by default.
        steps: Iterative pruning steps; what is kept shrinks geometrically.
        seed: Seed of random choices.
        stats: A calibration to reuse instead of batches.
        curves: Sensitivity curves to reuse, of `measure_sensitivity` with the same ignored layers.
        layer_ratios: Channel ratio by module-name prefix.
        ignored_layers: Module names that keep their output width, with all below them.
        max_ratio: No group of layers loses more than this share.
        round_to: Widths of pruned layers are multiples of this; "auto": of 8.
        min_channels: No group keeps fewer channels.
        method_options: Options of the method, for instance {"variant": "producer"}.
        repair: Training-free repair: True or "auto" (judged by images held back), "closed_form", "sequential" or False.
        loss: Mean loss of (output, targets) for gradient-based methods; cross-entropy by default.
        latency: Keys of `evaluation.latency`, or a function (dense, pruned) that returns the ratio of their latencies.

    Raises:
        RegistryError, StudyError: When a method or metric is unknown, or an option does not fit the method.
        PruningError: When an argument is not allowed, or the model cannot be pruned as asked.
    """
    compensation = _compensation(repair, batches)
    trial = _trial(method, coverage_metric, ratio, budget, mode, steps, seed, method_options)
    bounds = _bounds(layer_ratios, ignored_layers, max_ratio, round_to, min_channels)
    scoring = create_method(method, trial.options)
    if compensation or scoring.needs_curves or scoring.remeasures:
        batches = _readable_again(batches)
    result = _pruned(model, example_inputs, batches, trial, bounds, stats, curves, loss, latency)
    return _repaired(model, result, batches, compensation)


def _pruned(
    model: nn.Module,
    example_inputs: Tensor | tuple[Tensor, ...],
    batches: Iterable[Batch] | None,
    trial: Trial,
    bounds: PruningSection,
    stats: ActivationStatistics | None,
    curves: SensitivityCurves | None,
    loss: Loss | None,
    latency: Mapping[str, Any] | CompareModels | None,
) -> PruneResult:
    """Measure what the method reads and was not given, and prune."""
    measure = None if batches is None else _measurement(trial, batches, loss)
    method = create_method(trial.method, trial.options)
    if stats is None and measure is not None and method.needs_statistics:
        stats = measure(model)
    if curves is None and batches is not None and method.needs_curves:
        curves = measure_sensitivity(model, example_inputs, batches, ignored_layers=bounds.ignored_layers)

    def prune_as(part: Trial) -> PruneResult:
        return Pruner(
            model, example_inputs, part, bounds=bounds, statistics=stats, remeasure=measure, curves=curves
        ).run()

    return prune_to_budget(prune_as, trial, bounds, lambda small: _compare(model, small, example_inputs, latency))


def _readable_again(batches: Iterable[Batch] | None) -> Iterable[Batch] | None:
    return list(batches) if isinstance(batches, Iterator) else batches


def _repaired(
    model: nn.Module, result: PruneResult, batches: Iterable[Batch] | None, compensation: str | None
) -> PruneResult:
    if compensation is None or batches is None:
        return result
    norms = "auto" if compensation == "auto" else "relative"
    outcome = repair_model(model, result, batches, compensation=compensation, batch_norm=norms)
    return replace(result, model=outcome.model)


def _compare(
    dense: nn.Module,
    pruned: nn.Module,
    example_inputs: Tensor | tuple[Tensor, ...],
    latency: Mapping[str, Any] | CompareModels | None,
) -> dict[str, Any]:
    """Return the pruned model's share of the dense latency, and how it was measured."""
    if callable(latency):
        return {"ratio": float(latency(dense, pruned))}
    images = example_inputs if isinstance(example_inputs, Tensor) else example_inputs[0]
    return compare_latency(dense, pruned, images, _checked(LatencySection, **(latency or {})), device=images.device)


def _compensation(repair: bool | str, batches: Iterable[Batch] | None) -> str | None:
    """Return the compensation that `prune` was asked for, or None."""
    compensation = {True: "auto", False: None}.get(repair, repair) if isinstance(repair, bool) else repair
    if compensation not in (None, "auto", "closed_form", "sequential"):
        raise PruningError(f"repair is '{repair}'; allowed: True, False, 'auto', 'closed_form' or 'sequential'")
    if compensation is not None and batches is None:
        raise PruningError(f"repair is {repair!r} and reads calibration images, but batches is None; pass batches")
    return compensation


def _trial(
    method: str,
    coverage_metric: str | None,
    ratio: float | None,
    budget: Mapping[str, float] | None,
    mode: str,
    steps: int,
    seed: int,
    options: Mapping[str, Any] | None,
) -> Trial:
    if create_method(method, dict(options or {})).uses_coverage_metric:
        coverage_metric = coverage_metric or "normalized_mean"
    return _checked(
        Trial,
        method=method,
        coverage_metric=coverage_metric,
        ratio=ratio,
        budget=None if budget is None else dict(budget),
        mode=mode,
        steps=steps,
        seed=seed,
        options=dict(options or {}),
    )


def _bounds(
    layer_ratios: Mapping[str, float] | None,
    ignored_layers: Sequence[str],
    max_ratio: float,
    round_to: int | str | None,
    min_channels: int,
) -> PruningSection:
    return _checked(
        PruningSection,
        layer_ratios=dict(layer_ratios or {}),
        ignored_layers=tuple(ignored_layers),
        max_ratio=max_ratio,
        round_to=round_to,
        min_channels=min_channels,
    )


def _checked(section: type[S], **values: Any) -> S:
    try:
        return section.model_validate(values)
    except ValidationError as error:
        raise PruningError(describe(error, section)) from None


def _measurement(trial: Trial, batches: Iterable[Batch], loss: Loss | None) -> Remeasure:
    """Return the function that calibrates a model as the trial's method needs it."""
    method = create_method(trial.method, trial.options)
    sections = CalibrationSection().sections if needs_sections(trial.coverage_metric) else None
    return lambda model: calibrate(
        model,
        batches,
        sections=sections,
        outputs=method.needs_outputs,
        gradients=method.needs_gradients,
        squared_gradients=method.needs_squared_gradients,
        loss=loss,
    )


def save(result: PruneResult, location: str | os.PathLike[str]) -> None:
    """Write a pruned model as plan.json and weights.safetensors into a folder or URL. Nothing is pickled."""
    save_model(result.model, result.plan, RunDirectory(location))


def save_model(model: nn.Module, plan: PruningPlan, run: RunDirectory, folder: str = "") -> None:
    """Write a pruned model below a folder of a run directory: weights first, the plan that names them last."""
    content = safetensors_bytes(model)
    prefix = f"{folder}/" if folder else ""
    run.write_bytes(prefix + WEIGHTS_FILE, content)
    run.write_text(prefix + PLAN_FILE, plan.with_weights(content).to_json())


def load(location: str | os.PathLike[str], factory: Callable[[], nn.Module]) -> nn.Module:
    """Read a pruned model.

    Args:
        location: Folder or URL that `save` wrote to.
        factory: Builds the dense architecture (its weights do not matter).

    Raises:
        ArtifactError: When files are missing, corrupted, cut off, or belong to another architecture.
    """
    return load_model(factory(), RunDirectory(location))


def load_model(dense: nn.Module, run: RunDirectory, folder: str = "") -> nn.Module:
    """Read what `save_model` wrote, into the architecture of a dense model."""
    prefix = f"{folder}/" if folder else ""
    plan = PruningPlan.from_json(run.read_text(prefix + PLAN_FILE))
    content = run.read_bytes(prefix + WEIGHTS_FILE)
    if hashlib.sha256(content).hexdigest() != plan.model.get("weights_sha256"):
        raise ArtifactError(f"'{prefix}{WEIGHTS_FILE}' in '{run.location}' is corrupted, cut off, or not of this plan")
    model = apply_plan(dense, plan)
    try:
        state = safetensors.torch.load(content)
        add_biases(model, sorted(state))
        model.load_state_dict(state, strict=True)
    except (RuntimeError, safetensors.SafetensorError) as error:
        raise ArtifactError(f"the weights do not fit the pruned model: {' '.join(str(error).split())}") from error
    return model


def apply_plan(dense: nn.Module, plan: PruningPlan) -> nn.Module:
    """Return a pruned copy of a dense model.

    Raises:
        ArtifactError: When the plan was made for another architecture.
    """
    device = next((value.device for value in dense.parameters()), torch.device("cpu"))
    inputs = tuple(torch.zeros(shape, device=device) for shape in plan.model["example_inputs"])
    found = identify(dense, inputs)
    if found["shapes"] != plan.model["shapes"]:
        raise ArtifactError(
            f"the plan was made for another architecture ({plan.model['class']}) than the one given "
            f"({found['class']}): their tensors differ in name or shape"
        )
    graph = ChannelGraph(dense, inputs if len(inputs) > 1 else inputs[0])
    graph.remove(plan.removed)
    for parameter in graph.model.parameters():
        parameter.grad = None
    return graph.model


__all__ = ["PruneResult", "apply_plan", "calibrate", "load", "measure_sensitivity", "prune", "save"]
