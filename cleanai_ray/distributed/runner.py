"""A whole study: dense model, calibration, sweep, tables, report."""

from __future__ import annotations

import datetime
import time
from typing import Any

import ray

from cleanai_ray import results
from cleanai_ray.artifacts import RunDirectory
from cleanai_ray.distributed.cluster import connected, require_room
from cleanai_ray.distributed.dense import obtain_dense
from cleanai_ray.distributed.measures import measure_dense
from cleanai_ray.distributed.progress import Narrator, format_seconds
from cleanai_ray.distributed.sweep import run_sweep
from cleanai_ray.distributed.writer import rank
from cleanai_ray.environment import describe_environment, describe_samples
from cleanai_ray.keys import calibration_key
from cleanai_ray.report import make_report
from cleanai_ray.study import Study, digest
from cleanai_ray.tables import write_tables
from cleanai_ray.workspace import Workspace

_OWN = (
    "cache",
    "trials",
    "models",
    "charts",
    "exports",
    "tune",
    "report.pdf",
    "report.html",
    "environment.json",
    "study.yaml",
    "layer_ratios.yaml",
)
_TABLES = (
    results.RESULTS_FILE,
    results.LAYERS_FILE,
    results.COVERAGE_FILE,
    results.HISTORY_FILE,
    results.LATENCY_FILE,
    results.SENSITIVITY_FILE,
)


def clear(run: RunDirectory) -> None:
    """Delete what an earlier run left in a run directory, and nothing else."""
    for name in (*_OWN, *_TABLES):
        run.delete(name)


def run_study(
    study: Study,
    workspace: Workspace,
    run: RunDirectory,
    *,
    address: str | None,
    command: str,
    narrator: Narrator,
) -> int:
    """Run a study, resuming what the run directory already holds, and return the number of failed trials.

    Args:
        study: The study.
        workspace: The study, opened in this process.
        run: Where everything goes.
        address: Address of a Ray cluster, or None to start one on this machine.
        command: The command that was typed, for the record.
        narrator: Told of the course of the study.

    Raises:
        CleanAIError: When the study cannot be run at all. What was computed until then is kept.
    """
    started, clock = datetime.datetime.now(datetime.timezone.utc), time.monotonic()
    run.write_text("study.yaml", study.to_yaml())
    with connected(address) as cluster:
        require_room(study, cluster)
        narrator.say(
            f"Ray: {cluster.num_nodes} node{'s' * (cluster.num_nodes > 1)}, {cluster.cpus:g} CPUs, "
            f"{cluster.gpus:g} GPUs" + (f"; dashboard {cluster.dashboard}" if cluster.dashboard else "")
        )
        with narrator.stage("dense model"):
            dense = obtain_dense(study, run, cluster)
        narrator.say(f"dense accuracy: {dense.accuracy.accuracy:.2%} of {dense.accuracy.num_samples} images")
        weights = ray.put(dense.weights)
        measures = measure_dense(study, workspace, weights, dense.digest, run, cluster, narrator)
        records = run_sweep(study, dense, ray.put(dense), ray.put(measures), run, cluster, narrator)
    write_tables(run, list(records.values()), dense.history, measures)
    environment = {
        **describe_environment(),
        "started": started.isoformat(timespec="seconds"),
        "seconds": round(time.monotonic() - clock, 1),
        "command": command,
        "cluster": {"nodes": cluster.num_nodes, "cpus": cluster.cpus, "gpus": cluster.gpus},
        "digests": {
            "study": digest(study.model_dump()),
            "weights": dense.digest,
            "calibration": calibration_key(study, dense.digest),
        },
        "samples": describe_samples(workspace),
        "warnings": [],
    }
    run.write_json("environment.json", environment)
    with narrator.stage("report"):
        make_report(run)
    rows = [record["row"] for record in records.values()]
    _say_outcome(rows, run, time.monotonic() - clock, narrator)
    return sum(row["status"] != results.OK for row in rows)


def _say_outcome(rows: list[dict[str, Any]], run: RunDirectory, seconds: float, narrator: Narrator) -> None:
    failed = [row for row in rows if row["status"] != results.OK]
    for row in failed:
        narrator.say(f"failed: {row['trial_id']}: {row['error']}")
    succeeded = sorted((row for row in rows if row["status"] == results.OK), key=rank)
    if succeeded:
        best = succeeded[0]
        narrator.say(
            f"best: {best['trial_id']}: accuracy {best['accuracy']:.2%} (dense {best['accuracy_dense']:.2%}) with "
            f"{best['macs'] / best['macs_dense']:.0%} of the MACs and {best['params'] / best['params_dense']:.0%} of "
            "the parameters"
        )
    narrator.say(f"{len(succeeded)} of {len(rows)} trials succeeded in {format_seconds(seconds)}")
    narrator.say(f"results: {run.location} (report.pdf, report.html, results.parquet)")
