"""The latency profile of a study: its dense architecture, timed in the study's target."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from cleanai_ray.config.evaluation import LatencySection
from cleanai_ray.config.study import Study
from cleanai_ray.errors import StudyError
from cleanai_ray.evaluation.machine import device_name
from cleanai_ray.evaluation.target_latency import open_target
from cleanai_ray.graph.graph import ChannelGraph
from cleanai_ray.models import build_model
from cleanai_ray.profile.blocks import profile_without_blocks
from cleanai_ray.profile.clock import TargetClock
from cleanai_ray.profile.fitted import LatencyProfile
from cleanai_ray.profile.measure import ProfileRequest, measure_profile, profile_conditions
from cleanai_ray.profile.table import profile_rows, read_profile
from cleanai_ray.pruning.block_removal import left_of, without_blocks
from cleanai_ray.pruning.granularity import Granularity, granularity_for_time
from cleanai_ray.pruning.plan import BlockPlan
from cleanai_ray.pruning.predicted_latency import PredictedLatency
from cleanai_ray.stages.workspace import Workspace, open_workspace
from cleanai_ray.storage import schemas
from cleanai_ray.tasks import find_task

if TYPE_CHECKING:
    import polars as pl  # half a second, which the checks of a study do without


def require_target(study: Study) -> None:
    """Check that a study names a target.

    Raises:
        StudyError: When it names none.
    """
    if study.evaluation.target is None:
        raise StudyError(
            "evaluation.target is null; needed: what runs the finished model, for instance "
            "--set evaluation.target.backend=onnxruntime"
        )


def profile_granularity(study: Study) -> Granularity:
    """Return the granularity of a study's profile: that of its widths, or the automatic one if they are any."""
    quantized = "int8" if study.evaluation.timed_target.dtype == "int8" else "none"
    return granularity_for_time(study.pruning, quantized, study.multiple)


def study_clock(workspace: Workspace) -> TargetClock:
    """Return the clock that an opened study meets latency budgets by: in its target, or in torch if it names none."""
    evaluation, example = workspace.study.evaluation, workspace.example_input().cpu()
    return TargetClock(evaluation.timed_target, evaluation.latency or LatencySection(), example, workspace.device)


def profile_study(device: str, study_json: str) -> list[dict[str, Any]]:
    """Measure the latency profile of a study in this process, and return the rows of profile.parquet.

    Weights are the ones that the architecture is built with, since time does not depend on them.

    Args:
        device: Where this process computes, for instance `cuda:0`.
        study_json: The study, as `Study.model_dump_json` writes it.

    Raises:
        EvaluationError: When the target cannot run here.
    """
    return measure_study_profile(open_workspace(study_json, device))


def measure_study_profile(workspace: Workspace) -> list[dict[str, Any]]:
    """Measure the latency profile of an opened study in this process, and return the rows of profile.parquet."""
    study = workspace.study
    target, section = study.evaluation.timed_target, study.evaluation.latency or LatencySection()
    model, example, granularity = architecture(study), workspace.example_input().cpu(), profile_granularity(study)
    used = open_target(target, workspace.device).device
    dense_ms, timed = measure_profile(
        model,
        example,
        ProfileRequest(granularity=granularity),
        study_clock(workspace).time_models,
        ignored_layers=ignored_of(workspace),
        check=study.pruning.check,
    )
    graph = ChannelGraph(model, example, ignored_of(workspace), check=study.pruning.check)
    conditions = profile_conditions(target, section, device_name(torch.device(used)))
    return profile_rows(graph, granularity, dense_ms, timed, conditions)


def profile_of(workspace: Workspace, table: pl.DataFrame) -> LatencyProfile:
    """Return the profile of an opened study from its profile.parquet."""
    study = workspace.study
    example = workspace.example_input().cpu()
    ignored, check = ignored_of(workspace), study.pruning.check
    return read_profile(table, architecture(study), example, profile_granularity(study), ignored, check)


def predicted_latency(
    workspace: Workspace, table: pl.DataFrame | None, blocks: Sequence[BlockPlan] = (), saved: float = 0.0
) -> PredictedLatency:
    """Return what a study's latency budgets are met by.

    Args:
        workspace: The opened study.
        table: Its profile.parquet; None: it is measured now.
        blocks: The blocks that are removed before layers are narrowed.
        saved: The time that they save together, as a fraction of the dense model's.
    """
    import polars as pl

    found = schemas.to_table(measure_study_profile(workspace), schemas.PROFILE) if table is None else table
    return predicted_without(workspace, profile_of(workspace, pl.DataFrame(found)), blocks, saved)


def predicted_without(
    workspace: Workspace, profile: LatencyProfile, blocks: Sequence[BlockPlan], saved: float
) -> PredictedLatency:
    """Return the predicted times of a study's model without some blocks; see `predicted_latency`."""
    own = profile
    if blocks:
        dense, example = architecture(workspace.study), workspace.example_input().cpu()
        ignored, check = left_of(dense, ignored_of(workspace), blocks), workspace.study.pruning.check
        bare = ChannelGraph(without_blocks(dense, blocks), example, ignored, check=check)
        own = profile_without_blocks(profile, bare, profile_granularity(workspace.study), saved)
    return PredictedLatency(predict=own.predict, dense_ms=profile.dense_ms)


def architecture(study: Study) -> nn.Module:
    """Return the dense model with its initial weights, on the CPU, as the network of the study's task."""
    task = find_task(study.task.name)
    return task.network(build_model(study.model.model_copy(update={"weights": None, "train": None}), task=task))


def ignored_of(workspace: Workspace) -> list[str]:
    """Return the names of the modules that keep their width in every trial of a study."""
    return list(dict.fromkeys([*workspace.study.pruning.ignored_layers, *workspace.ignored_layers()]))
