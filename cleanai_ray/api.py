"""Pruning as a library: calibrate, prune, save, load. Without a file, and without Ray."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

from torch import Tensor, nn

from cleanai_ray.config.messages import checked
from cleanai_ray.config.sections import PruningSection
from cleanai_ray.config.study import Trial
from cleanai_ray.display.progress import current, watched, with_progress
from cleanai_ray.errors import PruningError
from cleanai_ray.importance.base import create_method
from cleanai_ray.importance.curves import SensitivityCurves
from cleanai_ray.profile.blocks import time_blocks
from cleanai_ray.profile.clock import Clock, CompareModels
from cleanai_ray.profile.fitted import LatencyProfile
from cleanai_ray.profile.job_in_time import measure_job_profile, predicted_without, prune_in_time
from cleanai_ray.profile.predicted import clock_of, latency_profile, liked_multiple
from cleanai_ray.pruning.block_removal import plan_blocks
from cleanai_ray.pruning.blocks_only import remove_only
from cleanai_ray.pruning.measurements import Measurements
from cleanai_ray.pruning.plan import BlockPlan
from cleanai_ray.pruning.predicted_latency import PredictedLatency
from cleanai_ray.pruning.prune_result import PruneResult
from cleanai_ray.pruning.pruning_job import PruningJob
from cleanai_ray.pruning.saved_model import apply_plan, load, save
from cleanai_ray.repair import RepairOptions
from cleanai_ray.repair import repair as repair_model
from cleanai_ray.repair.arguments import repair_options
from cleanai_ray.sensitivity import cheapest_blocks, measure_blocks, measure_sensitivity
from cleanai_ray.sensitivity.block_choice import BlockChoice, choose_for_budget, with_choice
from cleanai_ray.sensitivity.block_judge import BlockJudge
from cleanai_ray.sensitivity.blocks import cheap_repair
from cleanai_ray.sensitivity.measuring import measure_for
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
    equal_widths: Sequence[str] = (),
    method_options: Mapping[str, Any] | None = None,
    repair: bool | str | Mapping[str, Any] = False,
    loss: Loss | None = None,
    latency: Mapping[str, Any] | CompareModels | None = None,
    target: Mapping[str, Any] | None = None,
    profile: LatencyProfile | None = None,
    task: str | Task = "classification",
    check: bool = True,
    remove_blocks: Sequence[str] | Literal["auto"] = (),
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
        ignored_layers: Module names, or patterns of them ("*.attn"), that keep their output width, with all below them.
        max_ratio: No group of layers loses more than this share.
        round_to: Widths of pruned layers are multiples of this; "auto": of what `target` likes (measured once in a
            process), else of 8, and of a half or a quarter where a layer would have fewer than 4 steps; None: any.
        min_channels: No group keeps fewer channels.
        equal_widths: Patterns of group names, as ["*.mlp.*"]; all groups that one matches keep as many channels.
        method_options: Options of the method: {"variant": "producer"} of wanda, {"search": 200} of reconstruction.
        repair: True for "auto", a name of `repair.COMPENSATIONS`, or keys of a study's `repair` section; False: none.
        loss: Mean loss of (output, targets) for gradient-based methods; the task's by default.
        latency: Keys of `evaluation.latency` for a latency budget, or a function (dense, pruned) -> ratio of latencies.
        target: Keys of `evaluation.target`: what a latency budget is met in; torch itself by default.
        profile: The dense model's latency profile, of `latency_profile`; by default one is measured first.
        task: What the model is for: `classification`, `segmentation`, `detection`, `language_modelling`, or a `Task`.
        check: Whether each cut is compared, on the example input, with the model whose removed channels are silent.
        remove_blocks: Residual blocks to replace by their shortcut first, of `measure_blocks`; without `ratio` and
            `budget`, nothing else is removed. "auto": those that a budget is better spent on than on narrower layers.
        progress: Whether to show a line of progress; by default in a terminal or a notebook.

    Raises:
        CleanAIError: When a name is unknown, an argument not allowed, or the model cannot be pruned as asked.
    """
    options, task = repair_options(repair, batches, seed), find_task(task)
    batches = None if batches is None else Batches(batches)
    batches = batches.again() if batches and remove_blocks else batches
    is_auto = _is_automatic(remove_blocks)
    if is_auto:
        _require_auto(budget, batches, stats=stats, curves=curves)
    names = () if is_auto else tuple(remove_blocks)
    blocks = plan_blocks(task.network(model), example_inputs, batches, names) if names else ()
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
        equal_widths=tuple(equal_widths),
        check=check,
    )
    batches = _readable_again(batches, trial, options)
    own: dict[str, Any] = {"trial": trial, "bounds": bounds, "task": task, "loss": _model_loss(loss, task)}
    job, choice = PruningJob(model=model, example_inputs=example_inputs, blocks=blocks, **own), None
    given = Measurements(statistics=stats, curves=curves, multiple=liked_multiple(round_to, target, example_inputs))
    is_timed = trial.budget is not None and trial.budget.latency is not None
    clock = clock_of(latency, target, example_inputs) if is_timed else None
    if is_auto and batches is not None:
        profile = measure_job_profile(job, given, clock) if clock is not None and profile is None else profile
        timing = None if clock is None or profile is None else (clock, profile)
        choice = _blocks_that_pay(job, given, batches, options, timing)
        job = replace(job, blocks=plan_blocks(job.network, example_inputs, batches, choice.names))
    measured = measure_for(job, given, batches)
    result = job.prune(trial, measured) if clock is None else prune_in_time(job, measured, clock, profile)
    return _repaired(model, with_choice(result, choice), batches, options, task)


def _is_automatic(remove_blocks: Sequence[str] | str) -> bool:
    if isinstance(remove_blocks, str) and remove_blocks != "auto":
        raise PruningError(f"remove_blocks is '{remove_blocks}'; allowed: 'auto', or a list of names of blocks")
    return remove_blocks == "auto"


def _require_auto(budget: Any, batches: Any, **measured: Any) -> None:
    """Check that there is what it takes to choose blocks."""
    missing = {"budget": "the limit that blocks and layers share", "batches": "the images that blocks are judged on"}
    for name, value in (("budget", budget), ("batches", batches)):
        if value is None:
            raise PruningError(f"remove_blocks is 'auto', and {name} is None; needed: {missing[name]}")
    for name, value in measured.items():
        if value is not None:
            raise PruningError(
                f"remove_blocks is 'auto', and {name} are given, of one choice of blocks; allowed: none, since each "
                "choice is measured"
            )


def _blocks_that_pay(
    job: PruningJob,
    given: Measurements,
    batches: Iterable[Batch],
    options: RepairOptions | None,
    timing: tuple[Clock, LatencyProfile] | None,
) -> BlockChoice:
    """Return the blocks that a job's budget is better spent on than on narrower layers."""
    assert job.trial.budget is not None
    current().begin("residual blocks")
    repair = None if options is None else cheap_repair(options.compensation, options.batch_norm)
    errors = measure_blocks(job.model, job.example_inputs, batches, repair=repair or False, task=job.task)
    times: dict[str, float] = {}
    if timing is not None:
        plans = [error.plan for error in errors]
        times = time_blocks(job.network, plans, timing[0].time_models, job.task.restored)
        errors = tuple(replace(error, time=times[error.name]) for error in errors)

    def predict(plans: Sequence[BlockPlan]) -> PredictedLatency:
        assert timing is not None
        saved = sum(times[plan.name] for plan in plans)
        return predicted_without(replace(job, blocks=tuple(plans)), given, timing[1], saved)

    judge = BlockJudge(job, batches, repair=repair, given=given, predict=None if timing is None else predict)
    choice = choose_for_budget(errors, job.trial.budget.resource, judge)
    judge.require_met(choice.error)
    return choice


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
