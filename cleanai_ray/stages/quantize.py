"""The last stage of a trial: its model quantised, scored and timed in what runs it."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from cleanai_ray.config.study import Trial
from cleanai_ray.deploy import Quantized, quantize, timing_of
from cleanai_ray.evaluation.latency import measure_latency
from cleanai_ray.stages.clock import TrialClock
from cleanai_ray.stages.columns import cost_columns, latency_columns
from cleanai_ray.stages.scores import TrialScores
from cleanai_ray.stages.workspace import Workspace


def quantize_trial(
    workspace: Workspace, trial: Trial, model: nn.Module, scores: TrialScores, clock: TrialClock
) -> Quantized | None:
    """Quantise a trial's model on the calibration samples, and score it; None where the trial asks for no such thing.

    Args:
        workspace: The opened study.
        trial: The cell of the sweep.
        model: The model after the last stage, which is not changed.
        scores: Told of the quantised model.
        clock: Told of the time.
    """
    if trial.quantization == "none":
        return None
    with clock.stage("quantize"):
        quantized = quantize(trial.quantization, model, workspace.example_input(), workspace.batches("calibration"))
    scores.add("quantized", quantized.model)
    return quantized


def measure_costs(
    workspace: Workspace,
    trial: Trial,
    dense: nn.Module,
    model: nn.Module,
    quantized: Quantized | None,
    clock: TrialClock,
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Count a trial's model, and time it beside the dense one, in those back ends that can run it.

    Args:
        workspace: The opened study.
        trial: The cell of the sweep.
        dense: The dense model on the workspace's device.
        model: The model after the last stage, in float.
        quantized: What was made of it, where the trial asks for that: it is timed, and its file is measured.
        clock: Told of the time.

    Returns:
        The rows of latency.parquet without trial_id, and the columns of results.parquet.
    """
    section, device, example = workspace.study.evaluation.latency, workspace.device, workspace.example_input()
    costs = cost_columns(dense, model, example, quantized)
    if section is None:
        return [], costs
    backend = "eager"
    if trial.quantization == "int8":
        # onnxruntime runs it on the CPU, wherever the study computes; the dense model stays where it is.
        backend, dense, device = "onnxruntime", copy.deepcopy(dense), torch.device("cpu")
    timing = timing_of(trial.quantization, section)
    models = {"dense": dense, "pruned": quantized.model if quantized else model}
    with clock.stage("evaluate"):
        rows = measure_latency(models, example, timing, device=device)
    return rows, {**costs, **latency_columns(rows, backend)}
