"""The timing of finished models after the sweep: one at a time, each with a whole GPU or all cores to itself."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from cleanai_ray.config.study import Trial
from cleanai_ray.errors import CleanAIError
from cleanai_ray.executors.context import RunContext
from cleanai_ray.executors.latency_profile import measured_profile
from cleanai_ray.profile.fitted import LatencyProfile
from cleanai_ray.pruning.plan import BlockPlan
from cleanai_ray.stages.blocks import BLOCKS_FILE, PricedBlocks
from cleanai_ray.stages.columns import latency_columns, target_columns
from cleanai_ray.stages.dense_measures import measures_folder
from cleanai_ray.stages.fingerprints import alone_key
from cleanai_ray.stages.latency_profile import predicted_without, profile_of
from cleanai_ray.stages.timed_alone import time_alone
from cleanai_ray.storage import schemas

Records = dict[str, dict[str, Any]]


def time_records(context: RunContext, records: Records, dense_digest: str) -> None:
    """Time the model of every successful trial of a study that names a target, and add the times to its record.

    A model that cannot be timed is told, and becomes a warning of its trial, whose other results stay.

    Args:
        context: The running study.
        records: The record of each trial by trial id, changed in place.
        dense_digest: Digest of the dense weights.
    """
    study = context.study
    if study.evaluation.target is None:
        return
    table = measured_profile(study, context.run)
    profile = None if table is None else profile_of(context.workspace, table)
    with context.progress.stage("latency, one model at a time"):
        for trial in study.trials():
            record = records[trial.trial_id]
            if record["row"]["status"] != schemas.OK:
                continue
            try:
                rows = _timed(context, trial, record, dense_digest)
            except CleanAIError as error:
                context.progress.say(f"{trial.trial_id} could not be timed: {error}")
                record["row"]["warnings"] = [*record["row"]["warnings"], f"it could not be timed: {error}"]
                continue
            predicted: tuple[float | None, float | None] = (None, None)
            if profile is not None and not record.get("blocks"):
                predicted = profile.predict(record["removed"]), profile.dense_ms
            elif profile is not None:
                predicted = _predicted_without_blocks(context, trial, record, profile)
            backend = "onnxruntime" if trial.quantization == "int8" else "eager"
            record["latency"] = [{"trial_id": trial.trial_id, **row} for row in rows]
            record["row"] |= {**latency_columns(rows, backend), **target_columns(rows, *predicted)}


def _predicted_without_blocks(
    context: RunContext, trial: Trial, record: Mapping[str, Any], profile: LatencyProfile
) -> tuple[float | None, float | None]:
    """Return the predicted milliseconds of a trial that lost blocks, and the dense model's; None if none was timed."""
    plans = [BlockPlan.from_dict(fields) for fields in record["blocks"]]
    name = f"{measures_folder(context.study, context.study.draw_of(trial))}/{BLOCKS_FILE}"
    if not context.run.exists(name):
        return None, None
    priced = replace(PricedBlocks.from_bytes(context.run.read_bytes(name)), removed=tuple(plan.name for plan in plans))
    if any(error.time is None for error in priced.errors if error.name in priced.removed):
        return None, None
    latency = predicted_without(context.workspace, profile, plans, priced.time_saved)
    return latency.predict(record["removed"]), latency.dense_ms


def _timed(context: RunContext, trial: Trial, record: Mapping[str, Any], dense_digest: str) -> list[dict[str, Any]]:
    """Return the rows of a trial from the run directory; if they are not there, time its model first."""

    def compute() -> bytes:
        removed, blocks = dict(record["removed"]), record.get("blocks")
        arguments = (context.study.model_dump_json(), removed, trial.quantization, *([blocks] if blocks else []))
        return json.dumps(context.executor.call(f"latency {trial.trial_id}", time_alone, *arguments)).encode()

    key = alone_key(context.study, trial, dense_digest, record)
    found: list[dict[str, Any]] = json.loads(context.cached(timing_name(trial.trial_id), key, compute))
    return found


def timing_name(trial_id: str) -> str:
    """Return the file that keeps the timing of a trial's model."""
    return f"cache/latency/{trial_id}.json"
