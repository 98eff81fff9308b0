"""Invented tables of a study: every column of every file has values, so that a report has every part."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from cleanai_ray.storage import schemas
from cleanai_ray.storage.run_directory import RunDirectory

METRICS = ("normalized_mean", "frequency", "mean_absolute", "combined")
LABELS = (*(("coverage", metric) for metric in METRICS), ("wanda", None), ("magnitude", None), ("taylor", None))
LABELS = (*LABELS, ("hessian", None), ("reconstruction", None), ("random", None))
RATIOS, MODES, STEPS = (0.1, 0.3, 0.5, 0.7), ("local", "global"), (1, 2)
WIDTHS = (16, *[16] * 6, *[32] * 6, *[64] * 6)
EPOCHS, CLASSES = 3, 10


def fill(columns: dict[str, Any], schema: pa.Schema, number: int) -> pa.Table:
    """Return a table with the given columns, and a value of the right kind in every other column of the schema.

    Args:
        columns: Values by column.
        schema: The schema of the table.
        number: Number of rows.
    """
    others = {pa.string(): "x", pa.float64(): 0.5, pa.int64(): 10, pa.bool_(): False}
    arrays = []
    for field in schema:
        given = columns.get(field.name)
        if given is None:
            given = [[]] * number if pa.types.is_list(field.type) else [others[field.type]] * number
        arrays.append(pa.array(given, type=field.type))
    return pa.Table.from_arrays(arrays, schema=schema)


def cells(number: int) -> Iterator[dict[str, Any]]:
    """Yield the defining columns of a number of trials: the cells of a grid, seed after seed."""
    grid = itertools.product(range(number), LABELS, RATIOS, MODES, STEPS)
    for index, (seed, (method, metric), ratio, mode, steps) in enumerate(itertools.islice(grid, number)):
        words = (method, metric, mode, f"r{ratio:g}", f"s{steps}", f"{index:08x}")
        yield {
            "trial_id": "-".join(word for word in words if word),
            "label": f"{method}/{metric}" if metric else method,
            "method": method,
            "coverage_metric": metric,
            "ratio": ratio,
            "mode": mode,
            "steps": steps,
            "seed": seed,
        }


def write_run(run: RunDirectory, number: int) -> dict[str, int]:
    """Write the tables of a study with a number of trials, and return the number of rows by file."""
    random = np.random.default_rng(0)
    trials = list(cells(number))
    ids = np.array([trial["trial_id"] for trial in trials])
    ratios = np.array([trial["ratio"] for trial in trials])
    tables = {
        schemas.RESULTS_FILE: fill(_results(trials, ratios, random), schemas.RESULTS, number),
        schemas.LAYERS_FILE: fill(_layers(ids, ratios), schemas.LAYERS, number * len(WIDTHS)),
        schemas.HISTORY_FILE: fill(_history(ids, random), schemas.HISTORY, number * EPOCHS),
        schemas.LATENCY_FILE: fill(_latency(ids, random), schemas.LATENCY, number * 4),
        schemas.CLASSES_FILE: fill(_classes(ids, random), schemas.CLASSES, number * CLASSES),
        schemas.COVERAGE_FILE: fill(_coverage(random), schemas.coverage_schema(METRICS), sum(WIDTHS)),
    }
    for name, table in tables.items():
        run.write_table(name, table)
    run.write_text("study.yaml", "name: invented\nquestion: How long does a report take?\n")
    run.write_json("environment.json", {"version": "0", "seconds": 1.0, "command": "jobs/bench_scale.py"})
    return {name.removesuffix(".parquet"): table.num_rows for name, table in tables.items()}


def _results(trials: list[dict[str, Any]], ratios: np.ndarray, random: np.random.Generator) -> dict[str, Any]:
    number = len(trials)
    skill = {label: index / 100 for index, (label, _) in enumerate(LABELS)}
    lost = ratios**2 * np.array([0.02 + skill[trial["method"]] for trial in trials])
    final = np.round(0.93 - lost + random.normal(0, 0.003, number), 4)
    kept = (1 - ratios) ** 2
    return {
        **{name: [trial[name] for trial in trials] for name in trials[0]},
        "status": [schemas.OK] * number,
        "error": [None] * number,
        **dict.fromkeys(("requested_budget", "control"), [None] * number),
        **{name: [None] * number for name in schemas.RESULTS.names if name.startswith("score")},
        "metric": ["accuracy"] * number,
        "warnings": [["a layer is narrow"] if index % 7 == 0 else [] for index in range(number)],
        "accuracy": final,
        "accuracy_finetuned": final,
        "accuracy_repaired": final - 0.01,
        "accuracy_pruned": 0.1 + 0.5 * (final - 0.1),
        "accuracy_dense": np.full(number, 0.93),
        "accuracy_low": final - 0.005,
        "accuracy_high": final + 0.005,
        "num_evaluated": np.full(number, 10000),
        "num_classes": np.full(number, CLASSES),
        "macs_dense": np.full(number, 31_000_000),
        "macs": (31_000_000 * kept).astype(int),
        "params_dense": np.full(number, 270_000),
        "params": (270_000 * kept).astype(int),
        "latency_ms_b1_p50_dense": np.full(number, 4.0),
        "latency_ms_b1_p50": 4 * (0.2 + 0.8 * kept) * random.normal(1, 0.02, number),
        **_paired(trials, kept, random),
        "channel_ratio_achieved": ratios,
        "seconds_total": random.uniform(10, 20, number),
    }


def _paired(trials: list[dict[str, Any]], kept: np.ndarray, random: np.random.Generator) -> dict[str, Any]:
    """Return the columns of comparisons with the dense model: speed by round, answers by image."""
    speedup = 1 / (0.2 + 0.8 * kept) * random.normal(1, 0.02, len(trials))
    lost = random.integers(30, 200, len(trials))
    gained = random.integers(20, 120, len(trials))
    return {
        "speedup_b1": speedup,
        "speedup_b1_low": 0.97 * speedup,
        "speedup_b1_high": 1.04 * speedup,
        "lost": lost,
        "gained": gained,
        "mcnemar_p": np.minimum(1.0, np.exp(-((lost - gained) ** 2) / (2 * (lost + gained)))),
    }


def _layers(ids: np.ndarray, ratios: np.ndarray) -> dict[str, Any]:
    widths = np.tile(WIDTHS, len(ids))
    kept = np.maximum(1, np.round(widths * (1 - np.repeat(ratios, len(WIDTHS))))).astype(int)
    names = [f"layer{index}" for index in range(len(WIDTHS))]
    return {
        "trial_id": np.repeat(ids, len(WIDTHS)),
        "layer": np.tile(names, len(ids)),
        "group": np.tile(names, len(ids)),
        "layer_index": np.tile(np.arange(len(WIDTHS)), len(ids)),
        "kind": ["Conv2d"] * len(widths),
        "out_channels_dense": widths,
        "out_channels": kept,
        "removed_channels": [list(range(few, many)) for few, many in zip(kept, widths, strict=True)],
    }


def _history(ids: np.ndarray, random: np.random.Generator) -> dict[str, Any]:
    rising = np.tile(np.linspace(0.7, 0.9, EPOCHS), len(ids))
    return {
        "trial_id": np.repeat(ids, EPOCHS),
        "epoch": np.tile(np.arange(1, EPOCHS + 1), len(ids)),
        "validation_accuracy": rising + random.normal(0, 0.01, len(rising)),
        "train_accuracy": rising,
    }


def _latency(ids: np.ndarray, random: np.random.Generator) -> dict[str, Any]:
    return {
        "trial_id": np.repeat(ids, 4),
        "variant": np.tile(["dense", "dense", "pruned", "pruned"], len(ids)),
        "batch_size": np.tile([1, 64, 1, 64], len(ids)),
        "latency_ms_p50": np.tile([4.0, 120.0, 2.0, 60.0], len(ids)) * random.normal(1, 0.02, 4 * len(ids)),
        "speedup": np.tile([None, None, 2.0, 2.0], len(ids)),
        "speedup_low": np.tile([None, None, 1.9, 1.95], len(ids)),
        "speedup_high": np.tile([None, None, 2.2, 2.05], len(ids)),
        "backend": ["eager"] * (4 * len(ids)),
        "device": ["cpu"] * (4 * len(ids)),
    }


def _classes(ids: np.ndarray, random: np.random.Generator) -> dict[str, Any]:
    number = CLASSES * len(ids)
    change = -np.sort(random.uniform(0, 0.1, (len(ids), CLASSES)))[:, ::-1].flatten()
    return {
        "trial_id": np.repeat(ids, CLASSES),
        "label": np.tile(np.arange(CLASSES), len(ids)),
        "num_evaluated": np.full(number, 1000),
        "accuracy_dense": np.full(number, 0.93),
        "accuracy": 0.93 + change,
        "change": change,
    }


def _coverage(random: np.random.Generator) -> dict[str, Any]:
    number = sum(WIDTHS)
    return {
        "layer": np.repeat([f"layer{index}" for index in range(len(WIDTHS))], WIDTHS),
        "layer_index": np.repeat(np.arange(len(WIDTHS)), WIDTHS),
        "side": ["input"] * number,
        "channel": np.concatenate([np.arange(width) for width in WIDTHS]),
        "minimum": np.zeros(number),
        "maximum": random.random(number) * (random.random(number) > 0.02),
        **{name: random.random(number) for name in METRICS},
    }
