"""A small study on real digits, and helpers to run it."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import yaml
from rich.console import Console

from cleanai_ray.config.study import Study
from cleanai_ray.executors.progress import ProgressReporter
from cleanai_ray.executors.run_study import RunOptions, run_study
from cleanai_ray.stages.calibration import calibrate_locally
from cleanai_ray.stages.dense import DenseModel
from cleanai_ray.stages.dense_measures import DenseMeasures
from cleanai_ray.stages.planning import check_study
from cleanai_ray.stages.shard_measures import MOMENTS, STATISTICS, ShardMeasurer, shards_of
from cleanai_ray.stages.workspace import Workspace
from cleanai_ray.statistics.merging import merge_tree
from cleanai_ray.storage import schemas
from cleanai_ray.storage.run_directory import RunDirectory

SMALL: dict[str, Any] = {
    "name": "small",
    "model": {"name": "resnet20", "num_classes": 10, "input_shape": [1, 8, 8], "train": {"epochs": 2}},
    "data": {"name": "digits", "calibration": {"samples": 200, "shard_size": 64}},
    "sweep": {"methods": ["coverage", "taylor", "random"], "ratios": [0.3], "modes": ["local"], "steps": [2]},
    "pruning": {"round_to": None},  # so that any ratio is met as it is asked for
    "finetune": {"epochs": 1},
    "evaluation": {"samples": 100, "latency": {"batch_sizes": [1, 4], "warmup": 1, "runs": 5}},
    # Another process of tests runs beside this one: a second actor would wait for a core more than it computes.
    "resources": {"calibration_actors": 1, "max_concurrent_trials": 1},
}


TIMINGS = ("seconds_", "latency_", "speedup_", "throughput", "node", "images_per_second")
TABLES = (
    schemas.RESULTS_FILE,
    schemas.LAYERS_FILE,
    schemas.CLASSES_FILE,
    schemas.COVERAGE_FILE,
    schemas.HISTORY_FILE,
)
"""The tables that a study gives again, but for how long it took and where."""

_TWO_NODES = Path(__file__).parent / "executors" / "two_nodes.py"
_SOONER = {"RAY_health_check_period_ms": "1000", "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "30"}
"""Ray takes a node for dead after 15 s, and workers for impossible to place after 60 s, if it is not told otherwise."""


def run(study: Study, folder: Any, executor: str = "local", *, report: bool = False) -> tuple[int, str]:
    """Run a study, and return the number of failed trials and what was printed.

    Args:
        study: The study.
        folder: The run directory.
        executor: `local`, or `ray`: the Ray that is there.
        report: True to make its report, which takes seconds.
    """
    said = io.StringIO()
    progress = ProgressReporter(Console(file=said, width=200, highlight=False))
    options = RunOptions(executor=executor, command="cleanai run", report=report)
    failed = run_study(study, check_study(study), RunDirectory(folder), options, progress)
    return failed, said.getvalue()


def run_on_two_nodes(settings: dict[str, Any], folder: Path, *words: str) -> str:
    """Run a study in `folder / "run"` on a cluster of two nodes (`two_nodes.py`), and return what was said."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "study.yaml").write_text(yaml.safe_dump(settings))
    environment = {**os.environ, "RAY_PROCESS_SPAWN_REAPER": "0", **_SOONER}
    command = (sys.executable, str(_TWO_NODES), str(folder / "study.yaml"), str(folder / "run"), *words)
    done = subprocess.run(command, capture_output=True, text=True, timeout=800, env=environment, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def timeless(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return rows without what depends on where and how fast they were computed."""
    return [{key: value for key, value in row.items() if not key.startswith(TIMINGS)} for row in rows]


def timeless_table(folder: Path, name: str = schemas.RESULTS_FILE) -> list[dict[str, Any]]:
    """Return a table of a run directory without what depends on where and how fast it was computed."""
    return timeless(pq.read_table(folder / name).to_pylist())


def measure_locally(workspace: Workspace, dense: DenseModel) -> DenseMeasures:
    """Return statistics and second moments of a dense model, measured in this process."""
    model = workspace.dense_model(dense.weights)
    measurer = ShardMeasurer(workspace, model, STATISTICS, MOMENTS)
    shards = [measurer.shard(number) for number in range(len(shards_of(workspace, STATISTICS, MOMENTS)))]
    return DenseMeasures(statistics=calibrate_locally(workspace, model), moments=merge_tree(shards).moments)
