"""The latency profile of a study: its dense architecture, timed in the study's target."""

from __future__ import annotations

from typing import Any

import polars as pl
import torch
from torch import nn

from cleanai_ray.config.study import Study
from cleanai_ray.errors import StudyError
from cleanai_ray.evaluation.machine import device_name
from cleanai_ray.evaluation.target_latency import open_target
from cleanai_ray.graph.graph import ChannelGraph
from cleanai_ray.models import build_model
from cleanai_ray.profile.fitted import LatencyProfile
from cleanai_ray.profile.measure import ProfileRequest, measure_profile, profile_conditions, timing_in
from cleanai_ray.profile.table import profile_rows, read_profile
from cleanai_ray.stages.workspace import Workspace, open_workspace

_USUAL_MULTIPLE = 8


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


def multiple_of(study: Study) -> int:
    """Return the granularity of a study's profile: that of its widths, or 8 where they are not rounded."""
    quantized = "int8" if study.evaluation.target and study.evaluation.target.dtype == "int8" else "none"
    return int(study.pruning.resolved(quantized).round_to or _USUAL_MULTIPLE)


def profile_study(device: str, study_json: str) -> list[dict[str, Any]]:
    """Measure the latency profile of a study in this process, and return the rows of profile.parquet.

    Weights are the ones that the architecture is built with, since time does not depend on them.

    Args:
        device: Where this process computes, for instance `cuda:0`.
        study_json: The study, as `Study.model_dump_json` writes it.

    Raises:
        EvaluationError: When the target cannot run here.
    """
    workspace = open_workspace(study_json, device)
    study = workspace.study
    require_target(study)
    target, section = study.evaluation.target, study.evaluation.latency
    assert target is not None
    assert section is not None
    model, example, multiple = architecture(study), workspace.example_input().cpu(), multiple_of(study)
    used = open_target(target, device).device
    dense_ms, timed = measure_profile(
        model,
        example,
        ProfileRequest(multiple=multiple),
        timing_in(target, section, example, device),
        ignored_layers=ignored_of(workspace),
    )
    graph = ChannelGraph(model, example, ignored_of(workspace))
    conditions = profile_conditions(target, section, device_name(torch.device(used)))
    return profile_rows(graph, multiple, dense_ms, timed, conditions)


def profile_of(workspace: Workspace, table: pl.DataFrame) -> LatencyProfile:
    """Return the profile of an opened study from its profile.parquet."""
    study = workspace.study
    example = workspace.example_input().cpu()
    return read_profile(table, architecture(study), example, multiple_of(study), ignored_of(workspace))


def architecture(study: Study) -> nn.Module:
    """Return the dense model with its initial weights, on the CPU."""
    return build_model(study.model.model_copy(update={"weights": None, "train": None}))


def ignored_of(workspace: Workspace) -> list[str]:
    """Return the names of the modules that keep their width in every trial of a study."""
    return list(dict.fromkeys([*workspace.study.pruning.ignored_layers, *workspace.ignored_layers()]))
