"""A whole study: dense model, calibration, sweep, tables, report."""

from __future__ import annotations

import datetime
import time
from typing import Any

import ray

from cleanai_ray.config.study import Study, digest
from cleanai_ray.executors.ray.cluster import Cluster, connected, require_room
from cleanai_ray.executors.ray.dense import obtain_dense
from cleanai_ray.executors.ray.measures import measure_draws
from cleanai_ray.executors.ray.progress import Narrator, format_seconds
from cleanai_ray.executors.ray.sweep import run_sweep
from cleanai_ray.executors.ray.trial_work import SweepInputs
from cleanai_ray.executors.ray.watching import watching
from cleanai_ray.executors.ray.writer import rank, run_files, unreadable_samples
from cleanai_ray.report import make_report
from cleanai_ray.stages.environment import describe_environment, describe_samples
from cleanai_ray.stages.fingerprints import calibration_key
from cleanai_ray.stages.planning import warn_of_another_study
from cleanai_ray.stages.tables import write_tables
from cleanai_ray.stages.workspace import Workspace
from cleanai_ray.storage import schemas
from cleanai_ray.storage.locking import locked
from cleanai_ray.storage.run_directory import RunDirectory

_OWN = (
    "cache",
    "trials",
    "models",
    "charts",
    "exports",
    "tune",
    "train",
    "report.pdf",
    "report.html",
    "environment.json",
    "status.json",
    "study.yaml",
    "layer_ratios.yaml",
)
_TABLES = (
    schemas.RESULTS_FILE,
    schemas.LAYERS_FILE,
    schemas.CLASSES_FILE,
    schemas.COVERAGE_FILE,
    schemas.HISTORY_FILE,
    schemas.LATENCY_FILE,
    schemas.SENSITIVITY_FILE,
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
    fresh: bool = False,
) -> int:
    """Run a study, resuming what the run directory already holds, and return the number of failed trials.

    Args:
        study: The study.
        workspace: The study, opened in this process.
        run: Where everything goes.
        address: Address of a Ray cluster, or None to start one on this machine.
        command: The command that was typed, for the record.
        narrator: Told of the course of the study.
        fresh: Delete first what an earlier run left.

    Raises:
        CleanAIError: When the study cannot be run at all, or another process holds the run directory. What was
            computed until then is kept.
    """
    with locked(run):
        if fresh:
            clear(run)
        return _run_alone(study, workspace, run, address, command, narrator)


def _run_alone(
    study: Study, workspace: Workspace, run: RunDirectory, address: str | None, command: str, narrator: Narrator
) -> int:
    started, clock = datetime.datetime.now(datetime.timezone.utc), time.monotonic()
    if warning := warn_of_another_study(study, run):
        narrator.say(warning)
    run.write_text("study.yaml", study.to_yaml())
    with (
        connected(address) as cluster,
        watching(study, run, narrator),
        run_files(study, run, cluster) as (files, writer),
    ):
        require_room(study, cluster)
        narrator.say(
            f"Ray: {cluster.num_nodes} node{'s' * (cluster.num_nodes > 1)}, {cluster.cpus:g} CPUs, "
            f"{cluster.gpus:g} GPUs" + (f"; dashboard {cluster.dashboard}" if cluster.dashboard else "")
        )
        with narrator.stage("dense model"):
            dense = obtain_dense(study, run, files, cluster)
        narrator.dense(dense.accuracy)
        weights = ray.put(dense.weights)
        measures = measure_draws(study, workspace, weights, dense.digest, run, files, cluster, narrator)
        inputs = SweepInputs(
            study=study,
            dense_digest=dense.digest,
            dense=ray.put(dense),
            measures=measures,
            files=files,
            writer=writer,
        )
        records, num_complete = run_sweep(inputs, run, cluster, narrator)
        write_tables(run, list(records.values()), dense.history, ray.get(measures[study.draws()[0]]))
        record = _record_of_run(study, workspace, run, cluster, dense.digest)
        record |= {"started": started.isoformat(timespec="seconds"), "command": command}
        record |= {"seconds": round(time.monotonic() - clock, 1), "trials_complete_before": num_complete}
        run.write_json("environment.json", record)
        with narrator.stage("report"):
            make_report(run)
    rows = [record["row"] for record in records.values()]
    _say_outcome(rows, run, time.monotonic() - clock, narrator)
    return sum(row["status"] != schemas.OK for row in rows)


def _record_of_run(
    study: Study, workspace: Workspace, run: RunDirectory, cluster: Cluster, dense_digest: str
) -> dict[str, Any]:
    """Return what environment.json says beside times and command."""
    return {
        **describe_environment(),
        "cluster": {"nodes": cluster.num_nodes, "cpus": cluster.cpus, "gpus": cluster.gpus},
        "digests": {
            "study": digest(study.model_dump()),
            "weights": dense_digest,
            "calibration": calibration_key(workspace.study, dense_digest),
        },
        "samples": describe_samples(workspace),
        "unreadable_samples": unreadable_samples(study, run),
        "warnings": [],
    }


def _say_outcome(rows: list[dict[str, Any]], run: RunDirectory, seconds: float, narrator: Narrator) -> None:
    failed = [row for row in rows if row["status"] != schemas.OK]
    for row in failed:
        narrator.say(f"failed: {row['trial_id']}: {row['error']}")
    succeeded = sorted((row for row in rows if row["status"] == schemas.OK), key=rank)
    if succeeded:
        best = succeeded[0]
        narrator.say(
            f"best: {best['trial_id']}: accuracy {best['accuracy']:.2%} (dense {best['accuracy_dense']:.2%}) with "
            f"{best['macs'] / best['macs_dense']:.0%} of the MACs and {best['params'] / best['params_dense']:.0%} of "
            "the parameters"
        )
    narrator.say(f"{len(succeeded)} of {len(rows)} trials succeeded in {format_seconds(seconds)}")
    narrator.say(f"results: {run.location} (report.pdf, report.html, results.parquet)")
