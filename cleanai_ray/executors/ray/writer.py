"""The one process that writes a study into a folder: an actor on the driver's node.

Workers send it what they made, so that a run directory on the head's own disk works on any cluster. A trial's model
comes before its record, and the record's completion marker last. Everything it knows it can read back, so that it
goes on where it was when its process was killed.
"""

from __future__ import annotations

import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import PurePosixPath
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cleanai_ray.config.study import Study
from cleanai_ray.errors import DataError
from cleanai_ray.executors.ray.cluster import Cluster
from cleanai_ray.executors.ray.files import (
    CHECKPOINTS,
    RunFiles,
    checkpoint_folder,
    read_file,
    record_name,
    write_file,
)
from cleanai_ray.stages.fingerprints import data_key
from cleanai_ray.storage import schemas
from cleanai_ray.storage.run_directory import PLAN_FILE, WEIGHTS_FILE, RunDirectory

Record = dict[str, Any]
UNREADABLE_FILE = "cache/unreadable.json"
_CONCURRENT_CALLS = 4


def model_folder(trial_id: str) -> str:
    """Return the folder that holds a trial's pruned model."""
    return f"models/{trial_id}"


def rank(row: dict[str, Any]) -> tuple[float, float, str]:
    """Return the sort key of trials, best first: accuracy, then fewer MACs, then the name."""
    return (-row["accuracy"], row["macs"], row["trial_id"])


def lacks_model(rows: list[dict[str, Any]], save_models: str, run: RunDirectory) -> set[str]:
    """Return the trials among complete ones whose model is to be kept and is not there."""
    wanted = {"none": [], "best": sorted(rows, key=rank)[:1], "all": rows}[save_models]
    return {row["trial_id"] for row in wanted if not run.exists(f"{model_folder(row['trial_id'])}/{PLAN_FILE}")}


def unreadable_samples(study: Study, run: RunDirectory) -> dict[str, str]:
    """Return the samples of a study that could not be decoded and were left out, with the reasons."""
    key = data_key(study)
    return run.read_json(UNREADABLE_FILE) if run.is_complete(UNREADABLE_FILE, key) else {}


class RunWriter:
    """Writes files, records and models, and keeps those models that the study asks for.

    Calls may overlap: files are independent of each other, records are taken one at a time.

    Args:
        location: The run directory.
        study: The study.
    """

    def __init__(self, location: str, study: Study) -> None:
        self._run = RunDirectory(location)
        self._study = study
        self._save_models = study.output.save_models
        self._lock = threading.Lock()
        self._statuses: dict[str, str] | None = None
        self._unreadable = unreadable_samples(study, self._run)
        self._saved = {row["trial_id"]: row for row in self._rows_with_model()}

    def read_file(self, name: str, inputs: str | None) -> bytes | None:
        """Return a file's content; see `RunFiles.read`."""
        return read_file(self._run, name, inputs)

    def write_file(self, name: str, content: bytes, inputs: str | None) -> None:
        """Write a file; see `RunFiles.write`."""
        write_file(self._run, name, content, inputs)

    def note_unreadable(self, found: dict[str, str]) -> None:
        """Add samples to those that could not be decoded.

        Raises:
            DataError: When there are more of them than `data.skip_unreadable` allows.
        """
        with self._lock:
            if found.keys() - self._unreadable.keys():
                self._unreadable = dict(sorted({**self._unreadable, **found}.items()))
                self._run.write_json(UNREADABLE_FILE, self._unreadable)
                self._run.mark(UNREADABLE_FILE, data_key(self._study))
            allowed = self._study.data.skip_unreadable
            if len(self._unreadable) > allowed:
                some = ", ".join(list(self._unreadable)[:3])
                raise DataError(
                    f"{len(self._unreadable)} samples cannot be decoded, data.skip_unreadable allows {allowed}: {some}"
                    + (", ..." if len(self._unreadable) > 3 else "")
                )

    def begin_sweep(self, completed: list[str]) -> None:
        """Delete models that are not those of complete trials: they are not what the tables will say."""
        with self._lock:
            self._statuses = {}
            self._saved = {name: row for name, row in self._saved.items() if name in completed}
            for trial_id in self._run.list("models"):
                if trial_id not in self._saved:
                    self._run.delete(model_folder(trial_id))

    def wants_model(self, row: dict[str, Any]) -> bool:
        """Whether the model of a trial is to be sent."""
        if self._save_models == "best":
            return all(rank(row) < rank(other) for other in list(self._saved.values()))
        return self._save_models == "all"

    def write(
        self,
        record: Record,
        inputs: str,
        plan: str | None,
        weights: bytes | None,
        quantized: tuple[str, bytes] | None = None,
    ) -> None:
        """Write a trial: its model if it comes with one, its record, and the marker of a trial that succeeded.

        Args:
            record: What the tables will say of it.
            inputs: The digest of its inputs.
            plan: The plan of its model.
            weights: Its weights, in float.
            quantized: Name and content of the quantised model's file.
        """
        row = record["row"]
        trial_id = row["trial_id"]
        with self._lock:
            if plan is not None and weights is not None and self.wants_model(row):
                folder = model_folder(trial_id)
                if quantized is not None:
                    self._run.write_bytes(f"{folder}/{quantized[0]}", quantized[1])
                self._run.write_bytes(f"{folder}/{WEIGHTS_FILE}", weights)
                self._run.write_text(f"{folder}/{PLAN_FILE}", plan)
                self._saved[trial_id] = row
            self._run.write_json(record_name(trial_id), record)
            if row["status"] == schemas.OK:
                self._run.mark(record_name(trial_id), inputs)
            if self._statuses is not None:
                self._statuses[trial_id] = row["status"]
            if self._save_models == "best":
                self._keep_best()

    def recorded(self, trials: list[tuple[str, str]]) -> dict[str, str]:
        """Return the status of those trials that were recorded since the sweep began, by trial id.

        A writer whose process was replaced meanwhile finds those again that succeeded.

        Args:
            trials: Trial ids, and the digests of their inputs.
        """
        if self._statuses is not None:
            return {trial_id: self._statuses[trial_id] for trial_id, _ in trials if trial_id in self._statuses}
        return {
            trial_id: schemas.OK for trial_id, inputs in trials if self._run.is_complete(record_name(trial_id), inputs)
        }

    def forget_checkpoints(self, names: list[str]) -> None:
        """Delete the checkpoints of trainings that are done, as far as there are any."""
        done = {PurePosixPath(file).name for name in names for file in (name, checkpoint_folder(name))}
        for name in done.intersection(self._run.list(CHECKPOINTS)):
            self._run.delete(f"{CHECKPOINTS}/{name}")

    def _keep_best(self) -> None:
        for trial_id in sorted(self._saved, key=lambda name: rank(self._saved[name]))[1:]:
            self._run.delete(model_folder(trial_id))
            del self._saved[trial_id]

    def _rows_with_model(self) -> Iterator[dict[str, Any]]:
        for trial_id in self._run.list("models"):
            if self._run.exists(record_name(trial_id)):
                row = self._run.read_json(record_name(trial_id))["row"]
                if row["status"] == schemas.OK:
                    yield row


@contextmanager
def run_files(study: Study, run: RunDirectory, cluster: Cluster) -> Iterator[tuple[RunFiles, Any]]:
    """Start the writer on the driver's node; yield the run directory as workers reach it, and the writer's handle."""
    placement = NodeAffinitySchedulingStrategy(node_id=cluster.driver_node, soft=False)
    actor = ray.remote(RunWriter).options(
        name=f"writer-{study.name}-{uuid.uuid4().hex[:6]}",
        num_cpus=0,
        scheduling_strategy=placement,
        max_restarts=-1,
        max_task_retries=-1,
        max_concurrency=_CONCURRENT_CALLS,
    )
    writer: Any = actor.remote(run.location, study)
    try:
        yield RunFiles(run, writer), writer
    finally:
        ray.kill(writer)
