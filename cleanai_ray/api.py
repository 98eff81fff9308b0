"""Pruning as a library: calibrate, prune, save, load. Without a file, and without Ray."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from cleanai_ray.config.messages import checked
from cleanai_ray.config.sections import CalibrationSection, PruningSection
from cleanai_ray.config.study import Trial
from cleanai_ray.coverage.base import needs_sections
from cleanai_ray.display.progress import current, watched, with_progress
from cleanai_ray.importance.base import create_method
from cleanai_ray.importance.curves import SensitivityCurves
from cleanai_ray.profile.clock import Clock, CompareModels
from cleanai_ray.profile.fitted import LatencyProfile
from cleanai_ray.profile.predicted import clock_of, latency_profile, liked_multiple, profile_model
from cleanai_ray.pruning.allocation import Allocation, AllocationProblem, search_allocation
from cleanai_ray.pruning.block_removal import left_of, plan_blocks, without_blocks
from cleanai_ray.pruning.blocks_only import remove_only
from cleanai_ray.pruning.granularity import granularity_for_time
from cleanai_ray.pruning.latency_budget import prune_to_budget
from cleanai_ray.pruning.measurements import Measurements, Remeasure
from cleanai_ray.pruning.plan import BlockPlan
from cleanai_ray.pruning.predicted_latency import PredictedLatency
from cleanai_ray.pruning.prune_result import PruneResult
from cleanai_ray.pruning.pruner import Pruner
from cleanai_ray.pruning.saved_model import apply_plan, load, save
from cleanai_ray.repair import RepairOptions
from cleanai_ray.repair import repair as repair_model
from cleanai_ray.repair.arguments import repair_options
from cleanai_ray.sensitivity import cheapest_blocks, measure_blocks, measure_sensitivity, score_candidates
from cleanai_ray.statistics import ActivationStatistics, CalibrationOptions
from cleanai_ray.statistics import calibrate as collect_statistics
from cleanai_ray.statistics.batch_forms import Batches
from cleanai_ray.statistics.calibration import Batch
from cleanai_ray.statistics.gradients import Loss, ModelLoss, loss_of_output
from cleanai_ray.tasks.base import Task, find_task
from cleanai_ray.training.library import evaluate, fine_tune


@with_progress("calibration")
def calibrate(
    model: nn.Module,
    batches: Iterable[Batch],
    *,
    loss: Loss | None = None,
    task: str | Task = "classification",
    progress: bool | None = None,
    **options: Any,
) -> ActivationStatistics:
    """Run a model over batches and return the statistics of its activations. The model is left as it was.

    Args:
        model: The model; it is run in eval mode on the device of its parameters.
        batches: Inputs [N, ...], or pairs (inputs, targets); targets are used for gradients only.
        loss: Mean loss of (output of the task's `network`, targets) for gradients; the task's by default.
        task: What the model is for, as in `prune`.
        progress: Whether to show a line of progress; by default in a terminal or a notebook.
        **options: `threshold`, `top_k`, `sections`, `outputs`, `gradients`, `squared_gradients` and `precision`, as
            `cleanai_ray.statistics.CalibrationOptions` documents them.

    Raises:
        CalibrationError: When an argument is not allowed, or a batch cannot be run; the message says which samples the
            batch holds.
    """
    task = find_task(task)
    wanted, shown = CalibrationOptions(**options), watched("calibration", batches)
    return collect_statistics(task.network(model), shown, wanted, loss=_model_loss(loss, task))


def _model_loss(loss: Loss | None, task: Task) -> ModelLoss:
    return loss_of_output(loss) if loss else task.network_loss


@with_progress("pruning")
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
    round_to: int | str | None = "auto",
    min_channels: int = 1,
    method_options: Mapping[str, Any] | None = None,
    repair: bool | str | Mapping[str, Any] = False,
    loss: Loss | None = None,
    latency: Mapping[str, Any] | CompareModels | None = None,
    target: Mapping[str, Any] | None = None,
    profile: LatencyProfile | None = None,
    task: str | Task = "classification",
    check: bool = True,
    remove_blocks: Sequence[str] = (),
    progress: bool | None = None,
) -> PruneResult:
    """Return a smaller copy of a model, and the plan that made it. The model given is not changed.

    Args:
        model: The trained model.
        example_inputs: One input batch, or a tuple that holds just it, on the model's device.
        batches: Inputs [N, ...] or (inputs, targets); a generator that is needed several times is read into memory.
        method: A name of `cleanai list methods`.
        mode: `local`, `global` or `isomorphic`: which groups of layers are ranked together.
        ratio: Share of channels to remove, in (0, 1). Either this or `budget`.
        budget: Limit of macs, params or latency as a share of the dense model's, as {"macs": 0.5}; or {"size_mb": 10}.
        coverage_metric: For coverage, adaptive and hybrids of them; `normalized_mean` by default.
        steps: Iterative pruning steps, over which the width shrinks geometrically.
        seed: Seed of random choices.
        stats: Statistics to reuse, of `calibrate`.
        curves: Sensitivity curves to reuse, of `measure_sensitivity` with the same ignored layers.
        layer_ratios: Channel ratio by module-name prefix.
        ignored_layers: Module names that keep their output width, with all below them.
        max_ratio: No group of layers loses more than this share.
        round_to: Widths of pruned layers are multiples of this; "auto": of what `target` likes (measured once in a
            process), else of 8, and of a half or a quarter where a layer would have fewer than 4 steps; None: any.
        min_channels: No group keeps fewer channels.
        method_options: Options of the method: {"variant": "producer"} of wanda, {"search": 200} of reconstruction.
        repair: True for "auto", a name of `repair.COMPENSATIONS`, or keys of a study's `repair` section; False: none.
        loss: Mean loss of (output, targets) for gradient-based methods; the task's by default.
        latency: Keys of `evaluation.latency` for a latency budget, or a function (dense, pruned) -> ratio of latencies.
        target: Keys of `evaluation.target`: what a latency budget is met in; torch itself by default.
        profile: The latency profile to spend time by, of `latency_profile`; by default it is measured first.
        task: What the model is for: `classification`, `segmentation`, `detection`, `language_modelling`, or a `Task`.
        check: Whether each cut is compared, on the example input, with the model whose removed channels are silent.
        remove_blocks: Residual blocks to replace by their shortcut first, of `measure_blocks`; without `ratio` and
            `budget`, nothing else is removed.
        progress: Whether to show a line of progress; by default in a terminal or a notebook.

    Raises:
        CleanAIError: When a name is unknown, an argument not allowed, or the model cannot be pruned as asked.
    """
    options, task = repair_options(repair, batches, seed), find_task(task)
    batches = None if batches is None else Batches(batches)
    batches = batches.again() if batches and remove_blocks else batches
    blocks = plan_blocks(task.network(model), example_inputs, batches, remove_blocks) if remove_blocks else ()
    if blocks and ratio is None and budget is None:
        result = remove_only(task.network(model), example_inputs, blocks)
        return _repaired(model, result.of_task(task), batches, options, task)
    trial = _trial(method, budget, coverage_metric, method_options, mode=mode, ratio=ratio, steps=steps, seed=seed)
    bounds = checked(
        PruningSection,
        layer_ratios=dict(layer_ratios or {}),
        ignored_layers=tuple(dict.fromkeys([*ignored_layers, *task.ignored_layers(model)])),
        max_ratio=max_ratio,
        round_to=round_to,
        min_channels=min_channels,
        check=check,
    )
    batches = _readable_again(batches, trial, options)
    job = _Job(model=model, example_inputs=example_inputs, trial=trial, bounds=bounds, task=task, blocks=blocks)
    multiple = liked_multiple(round_to, target, example_inputs)
    measured = job.measure(Measurements(statistics=stats, curves=curves, multiple=multiple), batches, loss)
    if trial.budget is not None and trial.budget.latency is not None:
        clock = clock_of(latency, target, example_inputs)
        return _repaired(model, job.prune_in_time(measured, clock, profile), batches, options, task)
    return _repaired(model, job.prune(job.trial, measured), batches, options, task)


def _trial(
    method: str,
    budget: Mapping[str, float] | None,
    coverage_metric: str | None,
    method_options: Mapping[str, Any] | None,
    **cell: Any,
) -> Trial:
    """Return the arguments of `prune` as a cell of a sweep."""
    options = dict(method_options or {})
    if coverage_metric is None and create_method(method, options).uses_coverage_metric:
        coverage_metric = "normalized_mean"
    limits = dict(budget) if isinstance(budget, Mapping) else budget
    return checked(Trial, method=method, budget=limits, coverage_metric=coverage_metric, options=options, **cell)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Job:
    """One call of `prune`, checked: the model, and how to prune it."""

    model: nn.Module
    example_inputs: Tensor | tuple[Tensor, ...]
    trial: Trial
    bounds: PruningSection
    task: Task
    blocks: tuple[BlockPlan, ...] = ()

    def measure(self, given: Measurements, batches: Iterable[Batch] | None, loss: Loss | None) -> Measurements:
        """Measure on the batches what the method reads and was not given."""
        if batches is None:
            return given
        method = create_method(self.trial.method, self.trial.options)
        network = without_blocks(self.task.network(self.model), self.blocks)
        ignored = left_of(self.bounds.ignored_layers, self.blocks)
        calibrate = _measurement(self.trial, batches, loss, self.task)
        statistics, curves = given.statistics, given.curves
        if statistics is None and method.needs_statistics:
            statistics = calibrate(network)
        if curves is None and method.needs_curves:
            shown, check = watched("sensitivity", batches), self.bounds.check
            curves = measure_sensitivity(network, self.example_inputs, shown, ignored_layers=ignored, check=check)

        def allocate(problem: AllocationProblem) -> Allocation:
            assert curves is not None
            scorer = score_candidates(
                network, self.example_inputs, batches, curves, ignored_layers=ignored, check=self.bounds.check
            )
            return search_allocation(problem, scorer)

        return replace(given, statistics=statistics, curves=curves, remeasure=calibrate, allocate=allocate)

    def prune(self, trial: Trial, measured: Measurements) -> PruneResult:
        """Prune as a trial says."""
        current().begin("pruning")
        network, inputs = self.task.network(self.model), self.example_inputs
        pruner = Pruner(network, inputs, trial, bounds=self.bounds, measured=measured, blocks=self.blocks)
        return pruner.run().of_task(self.task)

    def prune_in_time(self, measured: Measurements, clock: Clock, profile: LatencyProfile | None) -> PruneResult:
        """Meet a latency budget by what a profile predicts, which is measured first if there is none."""
        bare = without_blocks(self.task.network(self.model), self.blocks)
        if profile is None:
            current().begin("latency profile")
            granularity = granularity_for_time(self.bounds, self.trial.quantization, measured.multiple)
            ignored = left_of(self.bounds.ignored_layers, self.blocks)
            profile = profile_model(
                bare,
                self.example_inputs,
                clock,
                granularity=granularity,
                ignored_layers=ignored,
                restored=self.task.restored,
                check=self.bounds.check,
            )
        blocks_save = clock.compare(self.model, self.task.restored(bare))["ratio"] if self.blocks else 1.0
        latency = PredictedLatency(predict=profile.predict, dense_ms=profile.dense_ms / blocks_save)
        timed = replace(measured, latency=latency)
        return prune_to_budget(
            lambda trial: self.prune(trial, timed), self.trial, lambda small: clock.compare(self.model, small)
        )


def _readable_again(batches: Batches | None, trial: Trial, repair: RepairOptions | None) -> Batches | None:
    """Return batches that can be read as often as the method and the repair read them."""
    method = create_method(trial.method, trial.options)
    is_read_again = repair or method.needs_curves or method.remeasures
    return batches.again() if batches and is_read_again else batches


def _repaired(
    model: nn.Module, result: PruneResult, batches: Iterable[Batch] | None, options: RepairOptions | None, task: Task
) -> PruneResult:
    if options is None or batches is None:
        return result
    current().begin("repair")
    outcome = repair_model(model, result, batches, options, task=task)
    return replace(result, model=outcome.model)


def _measurement(trial: Trial, batches: Iterable[Batch], loss: Loss | None, task: Task) -> Remeasure:
    """Return a function that calibrates a model for the trial's method."""
    method = create_method(trial.method, trial.options)
    sections = CalibrationSection().sections if needs_sections(trial.coverage_metric) else None
    options = CalibrationOptions(
        sections=sections,
        outputs=method.needs_outputs,
        gradients=method.needs_gradients,
        squared_gradients=method.needs_squared_gradients,
    )
    return lambda network: collect_statistics(
        network, watched("calibration", batches), options, loss=_model_loss(loss, task)
    )


__all__ = [
    "PruneResult",
    "apply_plan",
    "calibrate",
    "cheapest_blocks",
    "evaluate",
    "fine_tune",
    "latency_profile",
    "load",
    "measure_blocks",
    "measure_sensitivity",
    "prune",
    "save",
]
