"""Run directories with invented numbers and real shapes, written as a study would write them."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from report.networks import NETWORKS, Layer
from report.synthetic_study import environment, study_file

from cleanai_ray.storage import schemas
from cleanai_ray.storage.run_directory import RunDirectory

METRICS = ("normalized_mean", "frequency", "mean_absolute", "combined")
WITH_METRIC = ("coverage", "adaptive")
SKILL = {
    "reconstruction": 0.4,
    "taylor": 0.8,
    "magnitude": 1.0,
    "wanda": 1.1,
    "adaptive": 1.3,
    "coverage": 1.6,
    "random": 3.2,
}
"""Points that a method loses at ratio 0.3 after all stages."""


@dataclass
class Tables:
    """The rows of a run directory; tests change them before they are written."""

    results: list[dict[str, Any]]
    layers: list[dict[str, Any]]
    coverage: list[dict[str, Any]]
    history: list[dict[str, Any]]
    latency: list[dict[str, Any]]
    study: dict[str, Any]
    environment: dict[str, Any] = field(default_factory=dict)

    def write(self, folder: Path) -> RunDirectory:
        run = RunDirectory(folder)
        tables = (
            (schemas.RESULTS_FILE, self.results, schemas.RESULTS),
            (schemas.LAYERS_FILE, self.layers, schemas.LAYERS),
            (schemas.COVERAGE_FILE, self.coverage, schemas.coverage_schema(METRICS)),
            (schemas.HISTORY_FILE, self.history, schemas.HISTORY),
            (schemas.LATENCY_FILE, self.latency, schemas.LATENCY),
        )
        for name, rows, schema in tables:
            run.write_table(name, schemas.to_table(rows, schema))
        run.write_text("study.yaml", yaml.safe_dump(self.study, sort_keys=False))
        run.write_json("environment.json", self.environment)
        return run


def make(
    *,
    methods: tuple[str, ...] = ("coverage", "wanda", "adaptive", "magnitude", "taylor", "random"),
    metrics: tuple[str, ...] = METRICS,
    ratios: tuple[float, ...] = (0.3, 0.5),
    budgets: tuple[str, ...] = (),
    modes: tuple[str, ...] = ("local", "global"),
    seeds: tuple[int, ...] = (0,),
    network: str = "resnet20",
    num_classes: int = 10,
    num_evaluated: int = 10000,
    accuracy_dense: float = 0.9306,
    finetune_epochs: int = 0,
    repair: bool = True,
    timed: bool = True,
) -> Tables:
    """Return the tables of a study that went well: 48 trials by default, every one better than random."""
    random = np.random.default_rng(7)
    layers = NETWORKS[network]()
    tables = Tables([], [], _coverage(layers, random), [], [], {}, {})
    amounts = [(ratio, None) for ratio in ratios] + [(None, budget) for budget in budgets]
    for method in methods:
        for metric, (ratio, budget), mode, seed in itertools.product(
            metrics if method in WITH_METRIC else (None,), amounts, modes, seeds
        ):
            share = ratio if ratio is not None else 1 - float(str(budget).partition("=")[2]) ** 0.5
            row = _trial(method, metric, ratio, budget, mode, seed, len(tables.results))
            kept = _layer_rows(row["trial_id"], layers, share, random)
            tables.layers += kept
            row |= _sizes(kept, timed)
            lost = SKILL.get(method, 1.2) * (share / 0.3) ** 2 * (1.15 if mode == "global" else 1.0)
            lost += 0.15 * (METRICS.index(metric) if metric in METRICS else 0) + random.normal(0, 0.05)
            final = accuracy_dense - max(lost, 0.05) / 100
            final = round(final * num_evaluated) / num_evaluated
            bare = 0.1 + (final - 0.1) * random.uniform(0.05, 0.6)
            row |= {
                "num_evaluated": num_evaluated,
                "num_classes": num_classes,
                "accuracy_dense": accuracy_dense,
                "accuracy_pruned": bare if repair or finetune_epochs else final,
                "accuracy_repaired": (bare + 0.8 * (final - bare) if finetune_epochs else final) if repair else None,
                "accuracy_finetuned": final if finetune_epochs else None,
                "accuracy": final,
                "top5_dense": 0.998,
                "top5": 0.997,
                "loss_dense": 0.21,
                "loss": 0.21 + lost / 50,
                "epochs_run": finetune_epochs,
                "best_epoch": finetune_epochs or None,
            }
            tables.history += _history(row["trial_id"], finetune_epochs, bare, final, random)
            tables.results.append(row)
            if timed:
                tables.latency += _latency(row)
    tables.study = study_file(methods, metrics, ratios, budgets, modes, seeds, network, num_classes, finetune_epochs)
    tables.environment = environment()
    return tables


def fail(tables: Tables, trial_ids: set[str] | None = None, error: str = "CUDA out of memory") -> Tables:
    """Make some or all trials fail."""
    for row in tables.results:
        if trial_ids is None or row["trial_id"] in trial_ids:
            kept = (
                "trial_id",
                "method",
                "coverage_metric",
                "label",
                "ratio",
                "requested_budget",
                "mode",
                "steps",
                "seed",
            )
            chosen = {key: row[key] for key in kept}
            row.clear()
            row.update(chosen, status=schemas.FAILED, error=f"{error} in {chosen['trial_id']}", warnings=[])
            for rows in (tables.layers, tables.history, tables.latency):
                rows[:] = [other for other in rows if other["trial_id"] != chosen["trial_id"]]
    return tables


def _trial(
    method: str, metric: str | None, ratio: float | None, budget: str | None, mode: str, seed: int, number: int
) -> dict[str, Any]:
    amount = f"r{ratio:g}" if budget is None else budget.replace("=", "")
    words = [method, metric, mode, amount, f"{number * 2654435761 % 2**32:08x}"]
    return {
        "trial_id": "-".join(word for word in words if word),
        "status": schemas.OK,
        "warnings": [],
        "method": method,
        "coverage_metric": metric,
        "label": f"{method}/{metric}" if metric else method,
        "ratio": ratio,
        "requested_budget": budget,
        "mode": mode,
        "steps": 1,
        "seed": seed,
        "seconds_total": 12.0 + number,
        "seconds_prune": 1.5,
        "seconds_repair": 2.5,
        "seconds_finetune": 0.0,
        "seconds_evaluate": 4.0,
        "node": "worker-1",
        "device": "cpu",
        "num_threads": 1,
    }


def _layer_rows(trial_id: str, layers: list[Layer], share: float, random: np.random.Generator) -> list[dict[str, Any]]:
    widths = {
        layer.group: layer.outputs
        - min(int(layer.outputs * share * random.uniform(0.8, 1.2)), int(0.8 * layer.outputs))
        for layer in layers
        if layer.group
    }
    rows = []
    for index, layer in enumerate(layers):
        outputs = widths.get(layer.group, layer.outputs) if layer.group else layer.outputs
        inputs = layer.inputs if index == 0 else max(1, round(layer.inputs * (1 - share)))
        removed = sorted(random.choice(layer.outputs, layer.outputs - outputs, replace=False).tolist())
        rows.append(
            {
                "trial_id": trial_id,
                "layer": layer.name,
                "layer_index": index,
                "kind": layer.kind,
                "group": layer.group,
                "out_channels_dense": layer.outputs,
                "out_channels": outputs,
                "in_channels_dense": layer.inputs,
                "in_channels": inputs,
                "params_dense": layer.params(layer.inputs, layer.outputs),
                "params": layer.params(inputs, outputs),
                "macs_dense": layer.macs(layer.inputs, layer.outputs),
                "macs": layer.macs(inputs, outputs),
                "removed_channels": removed,
            }
        )
    return rows


def _sizes(kept: list[dict[str, Any]], timed: bool) -> dict[str, Any]:
    total = {name: sum(row[name] for row in kept) for name in ("params", "params_dense", "macs", "macs_dense")}
    channels = sum(row["out_channels_dense"] for row in kept if row["group"])
    removed = sum(len(row["removed_channels"]) for row in kept)
    sizes = {"size_bytes": 4 * total["params"] + 9000, "size_bytes_dense": 4 * total["params_dense"] + 9000}
    times = {}
    if timed:
        dense = total["macs_dense"] / 2.0e7
        pruned = dense * (0.15 + 0.85 * total["macs"] / total["macs_dense"])
        times = {
            "latency_ms_b1_p50_dense": dense,
            "latency_ms_b1_p50": pruned,
            "latency_ms_b1_p90": 1.08 * pruned,
            "throughput_dense": 2200 / dense,
            "throughput": 2200 / pruned,
        }
    return total | sizes | times | {"channel_ratio_achieved": removed / channels}


def _history(
    trial_id: str, epochs: int, start: float, final: float, random: np.random.Generator
) -> list[dict[str, Any]]:
    rows = []
    for epoch in range(1, epochs + 1):
        progress = 1 - 0.5**epoch
        accuracy = start + (final - start) * progress / (1 - 0.5**epochs)
        rows.append(
            {
                "trial_id": trial_id,
                "epoch": epoch,
                "train_loss": 1.2 * 0.6**epoch,
                "train_accuracy": accuracy,
                "validation_loss": 1.1 * 0.7**epoch,
                "validation_accuracy": accuracy,
                "learning_rate": 0.01,
                "images_per_second": 900.0 + random.normal(0, 20),
                "is_best": epoch == epochs,
            }
        )
    return rows


def _latency(row: dict[str, Any]) -> list[dict[str, Any]]:
    rows = []
    for variant, batch in itertools.product(("dense", "pruned"), (1, 64)):
        single = row["latency_ms_b1_p50_dense" if variant == "dense" else "latency_ms_b1_p50"]
        median = single if batch == 1 else single * 29
        rows.append(
            {
                "trial_id": row["trial_id"],
                "variant": variant,
                "batch_size": batch,
                "latency_ms_p50": median,
                "latency_ms_p90": 1.08 * median,
                "throughput": 1000 * batch / median,
                "num_runs": 50,
                "num_warmup": 10,
                "num_threads": 1,
                "device": "cpu",
            }
        )
    return rows


def _coverage(layers: list[Layer], random: np.random.Generator) -> list[dict[str, Any]]:
    rows = []
    for index, layer in enumerate(layers):
        activity = random.gamma(1.6, 0.4, layer.outputs)
        dead = random.random(layer.outputs) < (0.06 if 3 < index < 9 else 0.0)
        for channel in range(layer.outputs):
            mean = 0.0 if dead[channel] else float(activity[channel])
            rows.append(
                {
                    "layer": layer.name,
                    "layer_index": index,
                    "side": "input",
                    "channel": channel,
                    "num_samples": 2048,
                    "mean": mean,
                    "standard_deviation": 0.5 * mean,
                    "minimum": 0.0,
                    "maximum": 6.0 * mean,
                    "normalized_mean": mean / 12,
                    "frequency": 0.0 if mean == 0 else min(1.0, 0.3 + mean / 2),
                    "mean_absolute": mean,
                    "combined": (mean / 12) ** 0.5,
                }
            )
    return rows
