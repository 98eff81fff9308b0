"""Writes a study into its run directory: files, the records of trials, and the models to keep.

A trial's model is written before its record, and the record's completion marker last. The writer can read back all
that it knows, so it carries on where it was if its process is killed and replaced.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, Protocol

from cleanai_ray.config.study import Study
from cleanai_ray.errors import DataError
from cleanai_ray.executors.checkpoints import CHECKPOINTS, FAULTS, checkpoint_folder
from cleanai_ray.executors.notes import Kind, add_notes
from cleanai_ray.stages.completed import model_folder, record_name
from cleanai_ray.stages.fingerprints import data_key
from cleanai_ray.storage import schemas
from cleanai_ray.storage.ranking import dominates
from cleanai_ray.storage.run_directory import PLAN_FILE, WEIGHTS_FILE, RunDirectory

Record = dict[str, Any]
UNREADABLE_FILE = "cache/unreadable.json"
UNBEATEN = ("best", "front")
"""Values of `output.save_models` with which a model is kept while no other trial beats its own."""


class RunStore(Protocol):
    """Access to a run directory for the driver and every worker; `RunWriter` documents the methods."""

    def read(self, name: str, inputs: str | None = None) -> bytes | None: ...  # noqa: D102
    def write(self, name: str, content: bytes, inputs: str | None = None) -> None: ...  # noqa: D102
    def note_unreadable(self, found: dict[str, str]) -> None: ...  # noqa: D102
    def note(self, kind: Kind, found: dict[str, Any]) -> None: ...  # noqa: D102
    def begin_sweep(self, completed: list[str]) -> None: ...  # noqa: D102
    def wants_model(self, row: dict[str, Any]) -> bool: ...  # noqa: D102
    def write_trial(self, record: Record, inputs: str, model: SavedTrialModel | None = None) -> None: ...  # noqa: D102
    def keep_model(self, trial_id: str) -> bool: ...  # noqa: D102
    def recorded(self, trials: list[tuple[str, str]]) -> dict[str, str]: ...  # noqa: D102
    def forget_checkpoints(self, names: list[str]) -> None: ...  # noqa: D102


@dataclass(frozen=True, kw_only=True)
class SavedTrialModel:
    """The files of a trial's model.

    Attributes:
        plan: Its plan, as JSON.
        weights: Content of its safetensors file, in float.
        quantized: Name and content of the quantised model's file, if there is one.
    """

    plan: str
    weights: bytes
    quantized: tuple[str, bytes] | None = None


def unreadable_samples(study: Study, run: RunDirectory) -> dict[str, str]:
    """Return the samples of a study that were left out because they could not be decoded, with the reasons."""
    key = data_key(study)
    return run.read_json(UNREADABLE_FILE) if run.is_complete(UNREADABLE_FILE, key) else {}


class RunWriter:
    """Writes files, records and models, and keeps the models that the study asks for.

    Calls may overlap: files are independent of each other, and records are written one at a time.

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
        self._chosen = ""
        self._told: dict[str, dict[str, Any]] = {}
        self._unreadable = unreadable_samples(study, self._run)
        self._saved = {row["trial_id"]: row for row in self._rows_with_model()}

    def read(self, name: str, inputs: str | None = None) -> bytes | None:
        """Return a file's content; None if it is missing, or not complete for inputs with this digest."""
        return read_file(self._run, name, inputs)

    def write(self, name: str, content: bytes, inputs: str | None = None) -> None:
        """Write a file, and then its completion marker if the digest of its inputs is given."""
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
                    f"{len(self._unreadable)} samples cannot be decoded; data.skip_unreadable allows {allowed}: {some}"
                    + (", ..." if len(self._unreadable) > 3 else "")
                )

    def note(self, kind: Kind, found: dict[str, Any]) -> None:
        """Add notes for the run's record; see `add_notes`."""
        with self._lock:
            told = self._told.setdefault(kind, {})
            if any(name not in told or told[name] != value for name, value in found.items()):
                add_notes(self._study, self._run, kind, found)
                told.update(found)

    def begin_sweep(self, completed: list[str]) -> None:
        """Delete the models of trials that are not complete, since the tables will not describe them.

        What is known of faults is forgotten as well: every trial has two tries again.
        """
        with self._lock:
            self._run.delete(FAULTS)
            self._statuses = {}
            self._saved = {name: row for name, row in self._saved.items() if name in completed}
            for trial_id in self._run.list("models"):
                if trial_id not in self._saved:
                    self._run.delete(model_folder(trial_id))

    def wants_model(self, row: dict[str, Any]) -> bool:
        """Return whether the model of a trial is to be kept: if not all are, while no other trial beats it."""
        if self._save_models in UNBEATEN:
            beaten = any(dominates(other, row) for other in list(self._saved.values()))
            return row["trial_id"] == self._chosen or not (beaten or row.get("control"))
        return self._save_models == "all"

    def keep_model(self, trial_id: str) -> bool:
        """Note the chosen trial, whose model will be wanted, and return whether it is there.

        If it is there and `best` is asked for, all other models are deleted.
        """
        with self._lock:
            self._chosen = trial_id
            is_there = trial_id in self._saved
            if self._save_models == "best":
                self._delete({name for name in self._saved if is_there and name != trial_id})
            return is_there

    def write_trial(self, record: Record, inputs: str, model: SavedTrialModel | None = None) -> None:
        """Write a trial: its model if it comes with one, its record, and its completion marker if it succeeded.

        Args:
            record: Its rows of the tables.
            inputs: The digest of its inputs.
            model: Its model.
        """
        row = record["row"]
        trial_id = row["trial_id"]
        with self._lock:
            if model is not None and self.wants_model(row):
                folder = model_folder(trial_id)
                if model.quantized is not None:
                    self._run.write_bytes(f"{folder}/{model.quantized[0]}", model.quantized[1])
                self._run.write_bytes(f"{folder}/{WEIGHTS_FILE}", model.weights)
                self._run.write_text(f"{folder}/{PLAN_FILE}", model.plan)
                self._saved[trial_id] = row
            self._run.write_json(record_name(trial_id), record)
            if row["status"] == schemas.OK:
                self._run.mark(record_name(trial_id), inputs)
            if self._statuses is not None:
                self._statuses[trial_id] = row["status"]
            if self._save_models in UNBEATEN:
                self._delete_dominated()

    def recorded(self, trials: list[tuple[str, str]]) -> dict[str, str]:
        """Return the status of the trials that were recorded since the sweep began, by trial id.

        If the writer's process was replaced since then, only the trials that succeeded are found.

        Args:
            trials: Trial ids, and the digests of their inputs.
        """
        if self._statuses is not None:
            return {trial_id: self._statuses[trial_id] for trial_id, _ in trials if trial_id in self._statuses}
        return {
            trial_id: schemas.OK for trial_id, inputs in trials if self._run.is_complete(record_name(trial_id), inputs)
        }

    def forget_checkpoints(self, names: list[str]) -> None:
        """Delete the checkpoints of finished trainings; names without a checkpoint are ignored."""
        done = {PurePosixPath(file).name for name in names for file in (name, checkpoint_folder(name))}
        for name in done.intersection(self._run.list(CHECKPOINTS)):
            self._run.delete(f"{CHECKPOINTS}/{name}")

    def _delete_dominated(self) -> None:
        rows = list(self._saved.values())
        beaten = {row["trial_id"] for row in rows if any(dominates(other, row) for other in rows)}
        self._delete(beaten - {self._chosen})

    def _delete(self, trial_ids: set[str]) -> None:
        for trial_id in sorted(trial_ids):
            self._run.delete(model_folder(trial_id))
            del self._saved[trial_id]

    def _rows_with_model(self) -> Iterator[dict[str, Any]]:
        for trial_id in self._run.list("models"):
            if self._run.exists(record_name(trial_id)):
                row = self._run.read_json(record_name(trial_id))["row"]
                if row["status"] == schemas.OK and (self._save_models == "all" or not row.get("control")):
                    yield row


def read_file(run: RunDirectory, name: str, inputs: str | None) -> bytes | None:
    """Return a file's content; None if it is missing, or not complete for inputs with this digest."""
    if not (run.exists(name) and (inputs is None or run.is_complete(name, inputs))):
        return None
    return run.read_bytes(name)


def write_file(run: RunDirectory, name: str, content: bytes, inputs: str | None) -> None:
    """Write a file, and then its completion marker if the digest of its inputs is given."""
    run.write_bytes(name, content)
    if inputs is not None:
        run.mark(name, inputs)
