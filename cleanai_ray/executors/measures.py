"""Measurements of the dense model that trials share; each is made once and kept in the run directory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from cleanai_ray.config.calibration_draw import CalibrationDraw
from cleanai_ray.executors.allocations import find_allocations, searching_trials
from cleanai_ray.executors.base import ShardPool, ShardWork
from cleanai_ray.executors.context import DenseWeights, RunContext
from cleanai_ray.executors.noted_work import run_noted
from cleanai_ray.executors.shared import Shared
from cleanai_ray.executors.writer import RunStore
from cleanai_ray.importance.curves import SensitivityCurves
from cleanai_ray.repair.moments import ConsumerMoments
from cleanai_ray.stages.calibration import CalibrationNeeds
from cleanai_ray.stages.dense_measures import (
    DenseMeasures,
    measure_study_curves,
    moment_shards,
    needs_curves,
    needs_moments,
    needs_statistics,
)
from cleanai_ray.stages.fingerprints import calibration_key, moments_key
from cleanai_ray.stages.workspace import open_workspace
from cleanai_ray.statistics import ActivationHistograms, ActivationStatistics


def measure_draws(context: RunContext, dense: DenseWeights) -> dict[CalibrationDraw, Shared[DenseMeasures]]:
    """Return the measurements for the trials of each draw of the calibration samples; see `measure_dense`."""
    found, draws = {}, context.study.draws()
    for draw in draws:
        if len(draws) > 1:
            context.progress.say(f"calibration samples: {draw.samples}, draw {draw.seed}")
        found[draw] = context.executor.share(measure_dense(context.of_draw(draw), dense))
    return found


def measure_dense(context: RunContext, dense: DenseWeights) -> DenseMeasures:
    """Return the measurements for the trials of a study of one draw, from the run directory or made now.

    Raises:
        CleanAIError: When a measurement fails; the message names the sample or the layer.
    """
    study, progress = context.study, context.progress
    statistics = moments = curves = None
    with context.executor.shard_pool(study, context.run, progress) as pool:
        if needs_statistics(study):
            with progress.stage("calibration"):
                statistics = measure_statistics(context, dense, pool)
        if needs_moments(study):
            with progress.stage("second moments"):
                moments = measure_moments(context, dense, pool)
    if needs_curves(study):
        assert moments is not None
        with progress.stage("sensitivity"):
            curves = _curves(context, dense, moments)
    found = DenseMeasures(statistics=statistics, moments=moments, curves=curves)
    searching = searching_trials(study)
    if searching:
        with progress.stage("allocations"):
            found = replace(found, allocations=find_allocations(context, dense, found, searching))
    return found


def measure_statistics(context: RunContext, dense: DenseWeights, pool: ShardPool) -> ActivationStatistics:
    """Return the activation statistics of a study of one draw, with histograms if a metric reads them."""
    study, key = context.study, calibration_key(context.study, dense.digest)
    (draw,) = study.draws()
    num_shards = -(-draw.samples // study.data.calibration.shard_size)

    def compute() -> bytes:
        work = ShardWork(call="calibrate", title="calibration", num_shards=num_shards, inputs=key)
        content = pool.sum_shards(work, dense.content)
        num_bins = CalibrationNeeds.of(study).sections
        if num_bins is None:
            return content
        statistics = ActivationStatistics.from_bytes(content)
        second_pass = ShardWork(call="count", title="histograms", num_shards=num_shards, inputs=key)
        ranges = context.executor.share(statistics.ranges)
        counts = pool.sum_shards(second_pass, dense.content, ranges, num_bins)
        return statistics.with_histograms(ActivationHistograms.from_bytes(counts)).to_bytes()

    content = _computed_once(context, pool, "calibration.safetensors", key, compute)
    return ActivationStatistics.from_bytes(content)


def measure_moments(context: RunContext, dense: DenseWeights, pool: ShardPool) -> ConsumerMoments:
    """Return the second moments of a study of one draw."""
    key = moments_key(context.study, dense.digest)

    def compute() -> bytes:
        num_shards = len(moment_shards(context.workspace))
        work = ShardWork(call="moments", title="second moments", num_shards=num_shards, inputs=key)
        return pool.sum_shards(work, dense.content)

    content = _computed_once(context, pool, "moments.safetensors", key, compute)
    return ConsumerMoments.from_bytes(content)


def _computed_once(context: RunContext, pool: ShardPool, file: str, key: str, compute: Callable[[], bytes]) -> bytes:
    """Return the sum of a pass over shards, and delete the shards once it is kept.

    If it was kept before, shards in the run directory are those of another pass that was interrupted.
    """
    name = f"{context.folder}/{file}"
    was_complete = context.run.is_complete(name, key)
    content = context.cached(name, key, compute)
    if not was_complete:
        pool.forget_shards()
    return content


def _curves(context: RunContext, dense: DenseWeights, moments: ConsumerMoments) -> SensitivityCurves:
    def compute() -> bytes:
        arguments = context.study.model_dump_json(), context.executor.store, dense.content, moments
        return context.executor.call(f"sensitivity-{context.study.name}", _measure_curves, *arguments)

    name, key = f"{context.folder}/curves.json", moments_key(context.study, dense.digest)
    context.cached(name, key, compute)
    return SensitivityCurves.from_json(context.run.read_text(name))


def _measure_curves(device: str, study_json: str, store: RunStore, weights: bytes, moments: ConsumerMoments) -> bytes:
    workspace = open_workspace(study_json, device)
    model = workspace.dense_model(weights)
    curves = run_noted(store, workspace, "sensitivity", lambda: measure_study_curves(workspace, model, moments))
    return curves.to_json().encode()
