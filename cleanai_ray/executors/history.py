"""The results of earlier runs that a run directory would lose: they are moved to `history/` within it.

A study that was changed, or another one, in a run directory with results supersedes the tables, the report and the
trials that are computed anew. `--fresh` supersedes everything.
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from typing import Any

import yaml

from cleanai_ray.config.study import Study
from cleanai_ray.errors import ArtifactError
from cleanai_ray.executors.progress import ProgressReporter
from cleanai_ray.stages.completed import model_folder, record_name
from cleanai_ray.stages.fingerprints import trial_key
from cleanai_ray.stages.tables import ALWAYS_WRITTEN
from cleanai_ray.storage import schemas
from cleanai_ray.storage.run_directory import RunDirectory

HISTORY = "history"
"""The folder of earlier results."""

_TABLES = (*ALWAYS_WRITTEN, schemas.SENSITIVITY_FILE, schemas.BLOCKS_FILE)
_REPORT = ("charts", "report.pdf", "report.html")
_OUTCOME = (*_TABLES, *_REPORT, "layer_ratios.yaml")
_STUDY, _RECORD = "study.yaml", "environment.json"
_SCRATCH = ("cache", "tune", "train", "status.json")
_NOT_OF_RESULTS = ("output", "resources", "tracking")


class History:
    """Moves what a run supersedes to a folder of `history/`, which is made when there is something to move.

    Args:
        run: The run directory, which no other process writes to.
        progress: Told of what was moved.
    """

    def __init__(self, run: RunDirectory, progress: ProgressReporter) -> None:
        self._run = run
        self._progress = progress
        self._folder = ""

    def clear(self) -> None:
        """Move all results of earlier runs, and delete what they kept for resuming."""
        names = (*_OUTCOME, schemas.PROFILE_FILE, "trials", "models", "exports", _RECORD, _STUDY)
        exports = " and exports" if self._run.exists("exports") else ""
        self._move(*names, told=f"everything is computed again: the earlier results{exports}")
        for name in _SCRATCH:
            self._run.delete(name)

    def keep_outcome(self, study: Study) -> None:
        """Move the tables and the report if another study made them, or this one before it was changed.

        The record of the run is copied, and so are models that better ones may replace. The study file goes last: if
        this is interrupted, the next run goes on with it.
        """
        held = _document(self._run)
        if not held or not any(self._run.exists(name) for name in _OUTCOME) or held == _comparable(study):
            return
        copied = model_folder("").rstrip("/") if study.output.save_models != "all" else ""
        for entry in filter(None, (copied, _RECORD)):
            if self._run.exists(entry):
                self._run.copy(entry, f"{self._place()}/{entry}")
        name = held.get("name")
        whose = "this study before it was changed" if name == study.name else f"the study '{name}'"
        self._move(*_OUTCOME, _STUDY, told=f"the tables and the report of {whose}")

    def keep_report(self) -> None:
        """Move the report of the results that were there, for a run that changes them and makes none."""
        self._move(*_REPORT, told="the report and the charts of earlier results")

    def keep_trials(self, study: Study, dense_digest: str) -> None:
        """Move records, models and exports of trials that succeeded and are not those of the study, or not any more."""
        keys = {trial.trial_id: trial_key(study, trial, dense_digest) for trial in study.trials()}
        found = [name.removesuffix(".json.done") for name in self._run.list("trials") if name.endswith(".json.done")]
        gone = [
            trial_id
            for trial_id in found
            if trial_id not in keys or not self._run.is_complete(record_name(trial_id), keys[trial_id])
        ]
        names = [name for trial_id in gone for name in (record_name(trial_id), model_folder(trial_id))]
        files = tuple(f"{trial_id}." for trial_id in gone)  # a format that is a folder adds nothing to the id
        names += [f"exports/{name}" for name in self._run.list("exports") if name in gone or name.startswith(files)]
        trials = "trial" if len(gone) == 1 else "trials"
        self._move(*names, told=f"{len(gone)} {trials} that the study no longer has, or has with other settings,")

    def _move(self, *names: str, told: str) -> None:
        """Move files and folders that exist, with their completion markers, and tell where; a copy there is enough."""
        there = [name for name in names if self._run.exists(name)]
        for name in there:
            place = f"{self._place()}/{name}"
            if self._run.exists(place):
                self._run.delete(name)
            else:
                self._run.move(name, place)
        if there:
            verb = "is" if told.startswith("1 ") else "are"
            self._progress.say(f"{told} {verb} kept in {self._run.location.rstrip('/')}/{self._place()}")

    def _place(self) -> str:
        if not self._folder:
            moment = datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H-%M-%S")
            taken, number = set(self._run.list(HISTORY)), 1
            while (name := moment if number == 1 else f"{moment}-{number}") in taken:
                number += 1
            self._folder = f"{HISTORY}/{name}"
        return self._folder


def _document(run: RunDirectory) -> dict[str, Any]:
    """Return the study file of a run directory without what results do not depend on; {} if there is none to read."""
    try:
        held = yaml.safe_load(run.read_text("study.yaml"))
    except (ArtifactError, yaml.YAMLError):
        return {}
    return _of_results(held) if isinstance(held, dict) else {}


def _comparable(study: Study) -> dict[str, Any]:
    return _of_results(yaml.safe_load(study.to_yaml()))


def _of_results(document: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in document.items() if name not in _NOT_OF_RESULTS}
