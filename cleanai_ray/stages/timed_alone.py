"""The timing of one finished model after the sweep, when nothing else of the study computes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from cleanai_ray.config.sweep import Quantization
from cleanai_ray.config.target import TargetSection
from cleanai_ray.deploy import timing_of
from cleanai_ray.deploy.quantized import quantize
from cleanai_ray.errors import EvaluationError
from cleanai_ray.evaluation.latency import measure_latency
from cleanai_ray.evaluation.target_latency import target_rows, time_in_target
from cleanai_ray.graph.graph import ChannelGraph
from cleanai_ray.pruning.block_removal import left_of, without_blocks
from cleanai_ray.pruning.plan import BlockPlan
from cleanai_ray.stages.latency_profile import architecture, ignored_of
from cleanai_ray.stages.workspace import open_workspace


def time_alone(
    device: str,
    study_json: str,
    removed: Mapping[str, int],
    quantization: Quantization,
    blocks: Sequence[Mapping[str, Any]] = (),
) -> list[dict[str, Any]]:
    """Time a pruned model beside the dense one in this process, which should have the machine or GPU to itself.

    The model is made again from the number of channels that each group lost: its time depends neither on which they
    are nor on the weights.

    Args:
        device: Where this process computes, for instance `cuda:0`.
        study_json: The study, as `Study.model_dump_json` writes it.
        removed: Channels that each narrowed group lost.
        quantization: The trial's quantisation.
        blocks: The plans of the blocks that it removed, as JSON-like values.

    Returns:
        Rows of latency.parquet except trial_id: of the target, if it can run the quantised model, and of the back ends
        of evaluation.latency.

    Raises:
        CleanAIError: When a back end cannot run here, or not the model.
    """
    workspace = open_workspace(study_json, device)
    evaluation = workspace.study.evaluation
    section, target, example = evaluation.latency, evaluation.target, workspace.example_input()
    assert section is not None
    assert target is not None
    dense = architecture(workspace.study)
    plans = [BlockPlan.from_dict(fields) for fields in blocks]
    ignored = left_of(dense, ignored_of(workspace), plans)
    bare, check = without_blocks(dense, plans), workspace.study.pruning.check
    pruned: nn.Module = _narrowed(ChannelGraph(bare, example.cpu(), ignored, check=check), removed)
    where, rows = torch.device(device), []
    if _runs(target, quantization):
        final = _quantized(pruned, example.cpu(), quantization) if quantization == "int8" else pruned
        times = time_in_target({"dense": dense, "pruned": final}, example, target, section, device=where)
        rows += target_rows(times, target, section)
    if quantization == "int8":
        where = torch.device("cpu")  # onnxruntime runs int8 there, whatever the study's device
    final = _quantized(pruned, example.cpu(), quantization)
    timing = timing_of(quantization, section)
    rows += measure_latency({"dense": dense, "pruned": final}, example.to(where), timing, device=where)
    return [{**row, "exclusive": True} for row in rows]


def _narrowed(graph: ChannelGraph, removed: Mapping[str, int]) -> nn.Module:
    groups = {group.name: group for group in graph.groups}
    gone = {}
    if unknown := sorted(removed.keys() - groups.keys()):
        raise EvaluationError(f"the model cannot be made again to be timed: it has no group {', '.join(unknown)}")
    for name, count in removed.items():
        group = groups[name]
        left = group.num_units - count // group.num_blocks
        gone[name] = [channel for channel in range(group.num_channels) if group.unit_of[channel] >= left]
    graph.remove(gone)
    return graph.model.eval().requires_grad_(False)


def _runs(target: TargetSection, quantization: Quantization) -> bool:
    """Return whether a target can run a quantised model: int8 in onnxruntime, bfloat16 where the target is that."""
    if quantization == "int8":
        return target.backend == "onnxruntime"
    return quantization == "none" or target.dtype == "bfloat16"


def _quantized(model: nn.Module, example: torch.Tensor, quantization: Quantization) -> nn.Module:
    """Return the model as it is deployed; ranges come from the example, since time does not depend on them."""
    if quantization == "none":
        return model
    return quantize(quantization, model, example, [(example, example[:, :0])]).model
