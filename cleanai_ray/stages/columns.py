"""The columns of results.parquet, computed from a trial's measurements."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from torch import Tensor, nn

from cleanai_ray.analysis.intervals import wilson
from cleanai_ray.analysis.near_chance import is_near_chance
from cleanai_ray.config.study import Study, Trial
from cleanai_ray.deploy import Quantized
from cleanai_ray.errors import CleanAIError
from cleanai_ray.evaluation.comparison import Comparison
from cleanai_ray.evaluation.significance import mcnemar_p
from cleanai_ray.importance.base import create_method
from cleanai_ray.nn.complexity import measure_complexity
from cleanai_ray.stages.scores import StageScore
from cleanai_ray.stages.task_scores import task_columns
from cleanai_ray.tasks.accuracy import Accuracy
from cleanai_ray.tasks.score import TaskScore

_SCORED_STAGES = ("pruned", "repaired", "finetuned", "quantized")
"""The stages whose score has a column of its own."""


def describe_trial(study: Study, trial: Trial) -> dict[str, Any]:
    """Return the columns of results.parquet that identify a trial of a study."""
    draw, control = study.draw_of(trial), trial.control
    return {
        "trial_id": trial.trial_id,
        "control": None if control is None else control.kind,
        "method": trial.method if control is None or control.kind == "scratch" else control.kind,
        "coverage_metric": trial.coverage_metric,
        "label": trial.label,
        "reads_data": _reads_data(trial),
        "ratio": trial.ratio,
        "requested_budget": None if trial.budget is None else str(trial.budget),
        "mode": trial.mode,
        "steps": trial.steps,
        "seed": trial.seed,
        "calibration_samples": draw.samples,
        "calibration_seed": draw.seed,
        "quantization": trial.quantization,
    }


def _reads_data(trial: Trial) -> bool | None:
    """Return whether a trial's plan depends on calibration data; None where its method cannot be made."""
    try:
        return create_method(trial.method, dict(trial.options)).reads_data
    except CleanAIError:
        return None


def describe_repair(chosen: Mapping[str, Any]) -> str:
    """Return a short description of the repair that was applied."""
    parts = [name for name in (chosen["compensation"], chosen["batch_norm"]) if name != "none"]
    ridge = f", ridge {chosen['ridge']:g}" if chosen["ridge"] is not None else ""
    distilled = f", {chosen['distill_steps']} steps of distillation" if chosen["distill_steps"] else ""
    return (" + ".join(parts) or "none") + ridge + distilled


def repair_warnings(skipped: Sequence[str], notes: Sequence[str]) -> list[str]:
    """Return warnings that name the layers that compensation left out, and what it did otherwise than usual."""
    return [*([f"weight compensation leaves out {', '.join(skipped)}"] if skipped else []), *notes]


def latency_columns(latency: list[dict[str, Any]], backend: str = "eager") -> dict[str, Any]:
    """Return the latency columns of results.parquet from a trial's rows of latency.parquet, for one back end."""
    rows = [entry for entry in latency if entry["backend"] == backend and entry.get("target") is None]
    if not rows:
        return {}
    largest = max(entry["batch_size"] for entry in rows)
    columns: dict[str, Any] = {"num_threads": rows[0]["num_threads"], "latency_backend": backend}
    for entry in rows:
        suffix = "_dense" if entry["variant"] == "dense" else ""
        if entry["batch_size"] == 1:
            columns[f"latency_ms_b1_p50{suffix}"] = entry["latency_ms_p50"]
            if not suffix:
                columns["latency_ms_b1_p90"] = entry["latency_ms_p90"]
                columns |= {f"speedup_b1{end}": entry[f"speedup{end}"] for end in ("", "_low", "_high")}
        if entry["batch_size"] == largest:
            columns[f"throughput{suffix}"] = entry["throughput"]
    return columns


def target_columns(
    latency: list[dict[str, Any]], predicted_ms: float | None, predicted_dense_ms: float | None = None
) -> dict[str, Any]:
    """Return the columns of results.parquet about the target from a trial's rows of latency.parquet.

    Args:
        latency: The rows.
        predicted_ms: The pruned model's time as a latency profile predicts it; None without one.
        predicted_dense_ms: The dense model's time in that profile.
    """
    rows = {entry["variant"]: entry for entry in latency if entry.get("target") is not None}
    if not rows:
        return {}
    pruned = rows["pruned"]
    return {
        "latency_target": pruned["target"],
        "latency_exclusive": pruned["exclusive"],
        "latency_predicted_ms": predicted_ms,
        "speedup_predicted": predicted_dense_ms / predicted_ms if predicted_dense_ms and predicted_ms else None,
        "latency_ms_target_dense": rows["dense"]["latency_ms_p50"],
        "latency_ms_target": pruned["latency_ms_p50"],
        **{f"speedup_target{end}": pruned[f"speedup{end}"] for end in ("", "_low", "_high")},
    }


def cost_columns(
    dense: nn.Module, pruned: nn.Module, example_input: Tensor, quantized: Quantized | None = None
) -> dict[str, int]:
    """Return parameters, MACs and file size of both models; `size_bytes` is the quantised file's if there is one."""
    columns: dict[str, int] = {}
    for suffix, model in (("_dense", dense), ("", pruned)):
        complexity = asdict(measure_complexity(model, example_input))
        columns |= {f"{name}{suffix}": complexity[name] for name in ("params", "macs", "size_bytes")}
    columns["size_bytes_float"] = columns["size_bytes"]
    if quantized is not None:
        columns["size_bytes"] = len(quantized.content)
    return columns


def score_columns(dense: Accuracy | TaskScore, scores: Mapping[str, StageScore], num_classes: int) -> dict[str, Any]:
    """Return the columns of results.parquet about scores.

    Args:
        dense: The dense model's score.
        scores: The scores of the trial's model by stage, in the order in which they were taken.
        num_classes: Number of classes.
    """
    last = list(scores.values())[-1]
    found = last.accuracy
    columns = {
        "metric": found.metric_name,
        "accuracy_dense": dense.merit,
        **{f"accuracy_{stage}": scores[stage].accuracy.merit if stage in scores else None for stage in _SCORED_STAGES},
        "accuracy": found.merit,
        "loss_dense": dense.loss,
        "loss": found.loss,
        "num_evaluated": found.num_samples,
    }
    if isinstance(dense, TaskScore) or isinstance(found, TaskScore):
        assert isinstance(dense, TaskScore)
        assert isinstance(found, TaskScore)
        return {**columns, **task_columns(dense, found)}
    assert last.comparison is not None, "the last score is compared with the dense model's"
    return {
        **columns,
        "top5_dense": dense.top5,
        "top5": found.top5,
        **comparison_columns(last.comparison, num_classes),
    }


def comparison_columns(comparison: Comparison, num_classes: int) -> dict[str, Any]:
    """Return the columns that compare the final model with the dense one, with their uncertainty."""
    interval = wilson(sum(comparison.class_correct), comparison.num_samples)
    accuracy_dense = sum(comparison.class_correct_dense) / comparison.num_samples
    return {
        "accuracy_low": interval.low,
        "accuracy_high": interval.high,
        "is_broken": is_near_chance(interval.high, accuracy_dense, num_classes),
        "lost": comparison.lost,
        "gained": comparison.gained,
        "mcnemar_p": mcnemar_p(comparison.lost, comparison.gained),
        "agreement": comparison.agreement,
        "kl_to_dense": comparison.mean_divergence,
        "ece_dense": comparison.confidence_dense.expected_error,
        "ece": comparison.confidence.expected_error,
    }
