"""Clusters of two nodes: workers of one trial on both, and a node that is lost in the middle."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import distributed.conftest as small
import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml

from cleanai_ray import results
from cleanai_ray.data.fashion_mnist import read_idx
from cleanai_ray.study import parse_study

pytestmark = pytest.mark.ray

SCRIPT = Path(__file__).with_name("two_nodes.py")
TIMINGS = ("seconds_", "latency_", "speedup_", "throughput", "node", "images_per_second")


def run_on_two_nodes(settings: dict[str, Any], folder: Path, *words: str) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "study.yaml").write_text(yaml.safe_dump(settings))
    environment = {**os.environ, "RAY_PROCESS_SPAWN_REAPER": "0"}
    words = (sys.executable, str(SCRIPT), str(folder / "study.yaml"), str(folder / "run"), *words)
    done = subprocess.run(words, capture_output=True, text=True, timeout=800, env=environment, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def rows(folder: Path, name: str = results.RESULTS_FILE) -> list[dict[str, Any]]:
    table = pq.read_table(folder / name).to_pylist()
    return [{key: value for key, value in row.items() if not key.startswith(TIMINGS)} for row in table]


def shortened(root: Path, folder: Path) -> Path:
    """Write a folder of Fashion-MNIST's own format with the first images of each of its files."""
    folder.mkdir()
    for split, number in (("train", 12_000), ("t10k", 300)):
        for kind in ("images-idx3", "labels-idx1"):
            values = read_idx(root / f"{split}-{kind}-ubyte.gz")[:number]
            header = bytes([0, 0, 8, values.ndim]) + np.array(values.shape, ">u4").tobytes()
            (folder / f"{split}-{kind}-ubyte").write_bytes(header + values.tobytes())
    return folder


def test_fashion_mnist_with_two_workers_a_trial(fashion_mnist_root, reference_weights, tmp_path: Path) -> None:
    settings = {
        "name": "two_workers",
        "model": {"name": "resnet20", "weights": str(reference_weights), "num_classes": 10, "input_shape": [1, 28, 28]},
        "data": {
            "name": "fashion_mnist",
            "root": str(shortened(fashion_mnist_root, tmp_path / "images")),
            "calibration": {"samples": 128, "shard_size": 64},
        },
        "sweep": {"methods": ["magnitude"], "budgets": [{"macs": 0.5}]},
        "repair": {"compensation": "none", "batch_norm": "none"},
        "finetune": {"epochs": 1, "num_workers": 2, "batch_size": 100, "learning_rate": 0.05},
        "evaluation": {"latency": None},
    }
    run_on_two_nodes(settings, tmp_path)
    (row,) = rows(tmp_path / "run")
    assert row["status"] == "ok"
    assert row["epochs_run"] == 1
    assert row["accuracy_pruned"] < 0.3
    assert row["accuracy_finetuned"] > 0.7
    (epoch,) = rows(tmp_path / "run", results.HISTORY_FILE)
    assert epoch["train_accuracy"] > 0.6
    assert not list((tmp_path / "run" / "cache" / "checkpoints").glob("*"))


def test_two_workers_give_the_numbers_of_one(ray_session, small_run, tmp_path: Path) -> None:
    settings = {
        **small.SMALL,
        "data": {**small.SMALL["data"], "batch_size": 101},
        "sweep": {"methods": ["magnitude"], "ratios": [0.3], "steps": [2]},
        "finetune": {"between_steps": 1, "epochs": 1, "learning_rate": 0.005},
        "evaluation": {"samples": 300, "latency": None},
    }
    alone, together = tmp_path / "alone", tmp_path / "together"
    assert small.run(parse_study(settings), alone)[0] == 0
    settings["finetune"] = {**settings["finetune"], "num_workers": 2}
    assert small.run(parse_study(settings), together)[0] == 0
    (one,), (two,) = rows(alone), rows(together)
    # The same steps in another order of addition: what is near a decision may fall on either side of it.
    for name in ("accuracy_repaired", "accuracy_finetuned"):
        assert two[name] == pytest.approx(one[name], abs=2 / 300 + 1e-9)
    assert not list((together / "cache" / "checkpoints").glob("*"))
    histories = [rows(folder, results.HISTORY_FILE) for folder in (alone, together)]
    for first, second in zip(*histories, strict=True):
        assert second["train_loss"] == pytest.approx(first["train_loss"], rel=1e-2)
        assert (second["epoch"], second["step"]) == (first["epoch"], first["step"])
    assert [row["step"] for row in histories[1]][-2:] == [1, 2]


def test_a_raylet_killed_in_mid_study_changes_no_table(small_run, tmp_path: Path) -> None:
    _, quiet, _ = small_run
    said = run_on_two_nodes({**small.SMALL, "resources": {}}, tmp_path, "trials/*.done")
    assert "killed the raylet of the second node" in said
    tables = (results.RESULTS_FILE, results.LAYERS_FILE, results.CLASSES_FILE)
    for name in (*tables, results.COVERAGE_FILE, results.HISTORY_FILE):
        assert rows(tmp_path / "run", name) == rows(quiet, name), name
    assert {row["status"] for row in rows(quiet)} == {"ok"}


def test_a_trial_that_loses_a_worker_goes_on_with_the_other(tmp_path: Path) -> None:
    settings = {
        **small.SMALL,
        "sweep": {"methods": ["magnitude"], "ratios": [0.3]},
        "finetune": {"epochs": 12, "num_workers": 2, "save_every_n_epochs": 1, "early_stopping": None},
        "evaluation": {"samples": 100, "latency": None},
    }
    said = run_on_two_nodes(settings, tmp_path, "cache/checkpoints/magnitude*")
    assert "killed the raylet of the second node" in said
    (row,) = rows(tmp_path / "run")
    assert (row["status"], row["epochs_run"]) == ("ok", 12)
    epochs = [row["epoch"] for row in rows(tmp_path / "run", results.HISTORY_FILE) if row["trial_id"] != "dense"]
    assert epochs == [*range(1, 13)]
