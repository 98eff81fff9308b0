"""Measurements of the dense model that trials share; each is made once and kept in the run directory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import polars as pl

from cleanai_ray.config.calibration_draw import CalibrationDraw
from cleanai_ray.config.digests import digest
from cleanai_ray.config.study import Study
from cleanai_ray.config.sweep import Budget
from cleanai_ray.executors.allocations import find_allocations, searching_trials
from cleanai_ray.executors.base import ShardPool, ShardWork
from cleanai_ray.executors.context import DenseWeights, RunContext
from cleanai_ray.executors.latency_profile import obtain_profile
from cleanai_ray.executors.noted_work import run_noted
from cleanai_ray.executors.shared import Shared
from cleanai_ray.executors.writer import RunStore
from cleanai_ray.importance.curves import SensitivityCurves
from cleanai_ray.repair.moments import ConsumerMoments
from cleanai_ray.sensitivity.block_choice import BlockChoice
from cleanai_ray.stages.block_choice import choose_study_blocks, without_choice
from cleanai_ray.stages.blocks import (
    BLOCKS_FILE,
    BareWeights,
    PricedBlocks,
    blocks_of,
    choice_file,
    measured_model,
    meets_time,
    price_study_blocks,
)
from cleanai_ray.stages.calibration import CalibrationNeeds
from cleanai_ray.stages.dense_measures import (
    DenseMeasures,
    measure_study_curves,
    needs_curves,
    needs_moments,
    needs_statistics,
)
from cleanai_ray.stages.fingerprints import block_choice_key, blocks_key, calibration_key, moments_key
from cleanai_ray.stages.shard_measures import MOMENTS, STATISTICS, ShardMeasures, shards_of
from cleanai_ray.stages.workspace import open_workspace
from cleanai_ray.statistics import ActivationHistograms, ActivationStatistics

_FILES = {STATISTICS: "calibration.safetensors", MOMENTS: "moments.safetensors"}


def measure_draws(context: RunContext, dense: DenseWeights) -> dict[CalibrationDraw, Shared[DenseMeasures]]:
    """Return the measurements for the trials of each draw of the calibration samples; see `measure_dense`."""
    found, draws = {}, context.study.draws()
    for draw in draws:
        if len(draws) > 1:
            context.progress.say(f"calibration samples: {draw.samples}, draw {draw.seed}")
        found[draw] = context.executor.share(measure_dense(context.of_draw(draw), dense))
    return found


def measure_dense(context: RunContext, dense: DenseWeights, chooser: Study | None = None) -> DenseMeasures:
    """Return the measurements for the trials of a study of one draw, from the run directory or made now.

    Args:
        context: The study of one draw.
        dense: The weights of its dense model.
        chooser: The study by whose trials blocks are chosen for each budget; by default the same.

    Raises:
        CleanAIError: When a measurement fails; the message names the sample or the layer.
    """
    progress, blocks = context.progress, PricedBlocks()
    if context.study.pruning.remove_blocks is not None:
        with progress.stage("residual blocks"):
            blocks = obtain_blocks(context if chooser is None else context.of_study(chooser), dense)
        if blocks.choices:
            return _measure_choices(context, dense, blocks)
        progress.say(f"residual blocks that become their shortcuts: {', '.join(blocks.removed)}")
    return _measure_without(context, dense, blocks)


def _measure_choices(context: RunContext, dense: DenseWeights, blocks: PricedBlocks) -> DenseMeasures:
    """Return the measurements for the trials of each budget, whose blocks are its own; of equal choices, once."""
    by_names: dict[tuple[str, ...], list[str]] = {}
    for budget, choice in blocks.choices.items():
        context.progress.say(f"residual blocks for {budget}: {choice.why}")
        by_names.setdefault(choice.names, []).append(budget)
    found: dict[str, DenseMeasures] = {}
    for names, budgets in by_names.items():
        part = context.of_study(without_choice(context.study, names, budgets))
        folder = f"{context.folder}/without-{digest(names)[:12]}" if names else context.folder
        measures = _measure_without(replace(part, folder=folder), dense, replace(blocks, removed=names))
        found |= dict.fromkeys(budgets, measures)
    first = next(iter(found.values()))
    # Tables show the statistics of the first budget; no trial without one reads what is of a model without blocks.
    return replace(first, blocks=replace(blocks, removed=()), moments=None, by_budget=found)


def _measure_without(context: RunContext, dense: DenseWeights, blocks: PricedBlocks) -> DenseMeasures:
    """Return the measurements of the model without the blocks that are removed."""
    study, progress = context.study, context.progress
    if blocks.plans:
        content = dense.content.get()
        assert isinstance(content, bytes)
        bare = BareWeights(content=content, blocks=blocks.plans)
        dense = replace(dense, content=context.executor.share(bare))
    statistics, moments = measure_shards(context, dense)
    curves = None
    if needs_curves(study):
        assert moments is not None
        with progress.stage("sensitivity"):
            curves = _curves(context, dense, moments)
    found = DenseMeasures(statistics=statistics, moments=moments, curves=curves, blocks=blocks)
    searching = searching_trials(study)
    if searching:
        with progress.stage("allocations"):
            found = replace(found, allocations=find_allocations(context, dense, found, searching))
    return found


def measure_shards(
    context: RunContext, dense: DenseWeights
) -> tuple[ActivationStatistics | None, ConsumerMoments | None]:
    """Return the statistics and the second moments of a study of one draw; None for what no trial reads.

    What the run directory lacks of the two comes out of one pass over the calibration samples. Histograms, if a metric
    reads them, take a second one, because their bins divide ranges that the first one finds.
    """
    study, run = context.study, context.run
    keys: dict[str, str] = {}
    if needs_statistics(study):
        keys[STATISTICS] = calibration_key(study, dense.digest)
    if needs_moments(study):
        keys[MOMENTS] = moments_key(study, dense.digest)
    files = {kind: f"{context.folder}/{_FILES[kind]}" for kind in keys}
    missing = {kind: key for kind, key in keys.items() if not run.is_complete(files[kind], key)}
    if missing:
        _measure_missing(context, dense, missing, files)
    return (
        ActivationStatistics.from_bytes(run.read_bytes(files[STATISTICS])) if STATISTICS in keys else None,
        ConsumerMoments.from_bytes(run.read_bytes(files[MOMENTS])) if MOMENTS in keys else None,
    )


def _measure_missing(
    context: RunContext, dense: DenseWeights, missing: Mapping[str, str], files: Mapping[str, str]
) -> None:
    """Measure what is missing, keep it, and delete the shards then.

    Nothing is kept before everything is there: a run that ends in between resumes with the shards of its pass.
    """
    title = "calibration" if STATISTICS in missing else "second moments"
    with (
        context.progress.stage(title),
        context.executor.shard_pool(context.study, context.run, context.progress) as pool,
    ):
        inputs = next(iter(missing.values())) if len(missing) == 1 else digest(sorted(missing.values()))
        num_shards = len(shards_of(context.workspace, *missing))
        work = ShardWork(call="calibrate", title=title, num_shards=num_shards, inputs=inputs)
        found = ShardMeasures.from_bytes(pool.sum_shards(work, dense.content, *missing))
        contents = {}
        if found.statistics is not None:
            statistics = _with_histograms(context, dense, pool, found.statistics, missing[STATISTICS])
            contents[STATISTICS] = statistics.to_bytes()
        if found.moments is not None:
            contents[MOMENTS] = found.moments.to_bytes()
        for kind, content in contents.items():
            context.run.write_bytes(files[kind], content)
            context.run.mark(files[kind], missing[kind])
        pool.forget_shards()


def _with_histograms(
    context: RunContext, dense: DenseWeights, pool: ShardPool, statistics: ActivationStatistics, key: str
) -> ActivationStatistics:
    """Return statistics with the histograms of a second pass, if a metric reads them."""
    num_bins = CalibrationNeeds.of(context.study).sections
    if num_bins is None:
        return statistics
    num_shards = len(shards_of(context.workspace, STATISTICS))
    work = ShardWork(call="count", title="histograms", num_shards=num_shards, inputs=key)
    counts = pool.sum_shards(work, dense.content, context.executor.share(statistics.ranges), num_bins)
    return statistics.with_histograms(ActivationHistograms.from_bytes(counts))


def obtain_blocks(context: RunContext, dense: DenseWeights) -> PricedBlocks:
    """Return the prices of a study's blocks and its choices, from the run directory or made now.

    Raises:
        CleanAIError: When they cannot be priced, or the study asks for blocks that cannot go.
    """

    def compute() -> bytes:
        arguments = context.study.model_dump_json(), context.executor.store, dense.content
        return context.executor.call(f"blocks-{context.study.name}", _measure_blocks, *arguments)

    key = blocks_key(context.study, dense.digest)
    blocks = PricedBlocks.from_bytes(context.cached(f"{context.folder}/{BLOCKS_FILE}", key, compute))
    if context.study.pruning.remove_blocks != "auto":
        return blocks
    return replace(blocks, choices=_choices(context, dense, blocks))


def _choices(context: RunContext, dense: DenseWeights, blocks: PricedBlocks) -> dict[str, BlockChoice]:
    """Return the choice of blocks for each budget as text; budgets are judged side by side."""
    study, run = context.study, context.run
    files = {budget: choice_file(context.folder, budget) for budget in study.sweep.budgets}
    keys = {budget: block_choice_key(study, dense.digest, budget) for budget in files}
    missing = [budget for budget in files if not run.is_complete(files[budget], keys[budget])]
    if missing:
        profile = obtain_profile(study, run, context.executor, context.progress) if meets_time(study) else None
        arguments = study.model_dump_json(), dense.content, blocks, profile
        found = context.executor.map(f"block choice-{study.name}", _choose_blocks, missing, *arguments)
        for budget, choice in zip(missing, found, strict=True):
            run.write_json(files[budget], choice.to_dict())
            run.mark(files[budget], keys[budget])
    return {str(budget): BlockChoice.from_dict(run.read_json(file)) for budget, file in files.items()}


def _choose_blocks(
    device: str, budget: Budget, study_json: str, weights: bytes, blocks: PricedBlocks, profile: pl.DataFrame | None
) -> BlockChoice:
    workspace = open_workspace(study_json, device)
    return choose_study_blocks(workspace, workspace.dense_model(weights), blocks, budget, profile)


def _measure_blocks(device: str, study_json: str, store: RunStore, weights: bytes) -> bytes:
    workspace = open_workspace(study_json, device)
    model = workspace.dense_model(weights)
    return run_noted(store, workspace, "prices of blocks", lambda: price_study_blocks(workspace, model)).to_bytes()


def _curves(context: RunContext, dense: DenseWeights, moments: ConsumerMoments) -> SensitivityCurves:
    def compute() -> bytes:
        arguments = context.study.model_dump_json(), context.executor.store, dense.content, moments
        return context.executor.call(f"sensitivity-{context.study.name}", _measure_curves, *arguments)

    name, key = f"{context.folder}/curves.json", moments_key(context.study, dense.digest)
    context.cached(name, key, compute)
    return SensitivityCurves.from_json(context.run.read_text(name))


def _measure_curves(
    device: str, study_json: str, store: RunStore, weights: bytes | BareWeights, moments: ConsumerMoments
) -> bytes:
    workspace = open_workspace(study_json, device)
    model, blocks = measured_model(workspace, weights), blocks_of(weights)
    curves = run_noted(store, workspace, "sensitivity", lambda: measure_study_curves(workspace, model, moments, blocks))
    return curves.to_json().encode()
