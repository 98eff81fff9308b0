"""The record of a run, `environment.json`: where, when, how and with what it was made.

It is written before the first stage, and again whenever more is known, so that whatever fails afterwards leaves it.
"""

from __future__ import annotations

import datetime
import time
from typing import Any

from cleanai_ray.config.digests import digest
from cleanai_ray.config.study import Study
from cleanai_ray.data import ImageSource
from cleanai_ray.errors import ArtifactError
from cleanai_ray.executors.context import RunContext
from cleanai_ray.executors.notes import describe_notes
from cleanai_ray.executors.placement import Allotment
from cleanai_ray.executors.writer import unreadable_samples
from cleanai_ray.stages.dense import DenseModel
from cleanai_ray.stages.environment import describe_environment, describe_samples
from cleanai_ray.stages.fingerprints import calibration_key
from cleanai_ray.storage.run_directory import RunDirectory

RECORD_FILE = "environment.json"
_EARLIER = "earlier_runs"
_MOST_NAMES = 1000


class RunRecord:
    """Keeps the record of a run up to date in its run directory.

    Args:
        run: The run directory.
        command: The command that was typed.
        executor: Name of the executor.
    """

    def __init__(self, run: RunDirectory, *, command: str, executor: str) -> None:
        self._run = run
        self._clock = time.monotonic()
        started = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
        self._began = {"started": started, "command": command, "executor": executor}
        self._content: dict[str, Any] = {}

    def begin(self, context: RunContext) -> None:
        """Write what is known before anything is computed, and the records of earlier runs in this directory.

        Their outputs may be reused, and one that was interrupted has no other record.
        """
        study, resources = context.study, context.executor.resources
        self._note(
            **describe_environment(),
            cluster={"nodes": resources.num_nodes, "cpus": resources.cpus, "gpus": resources.gpus},
            digests={"study": digest(study.model_dump())},
            samples=describe_samples(context.workspace),
            preprocessing=context.workspace.source.describe_preprocessing(),
            class_names=_class_names(context.workspace.source),
            warnings=[],
            **self._began,
            **{_EARLIER: self._earlier()},
        )

    def _earlier(self) -> list[dict[str, Any]]:
        """Return the records of earlier runs, from the first one on."""
        try:
            last = self._run.read_json(RECORD_FILE)
        except ArtifactError:  # there is none, or none that can be read
            return []
        before = last.pop(_EARLIER, []) if isinstance(last, dict) else None
        return [*before, last] if isinstance(before, list) else []

    def note_weights(self, study: Study, dense: DenseModel) -> None:
        """Add the digests of the dense weights, of the calibration, and of the scored images.

        That of the images is of their numbers, their labels and the dense model's answers, which other images change.

        Args:
            study: The study, of one draw of the calibration samples.
            dense: The dense model.
        """
        found = {"weights": dense.digest, "calibration": calibration_key(study, dense.digest)}
        found["images"] = dense.logits.digest
        self._note(digests={**self._content["digests"], **found})

    def note_resources(self, allotment: Allotment) -> None:
        """Add the resources that trials get, and why."""
        self._note(resources=allotment.record())

    def end(self, study: Study, num_complete_before: int) -> None:
        """Add how long the run took, and what only its end shows.

        Args:
            study: The study.
            num_complete_before: Trials that were complete before the run.
        """
        self._note(
            unreadable_samples=unreadable_samples(study, self._run),
            **describe_notes(study, self._run),
            seconds=round(time.monotonic() - self._clock, 1),
            trials_complete_before=num_complete_before,
        )

    def _note(self, **values: Any) -> None:
        self._content |= values
        self._run.write_json(RECORD_FILE, self._content)


def _class_names(source: ImageSource) -> list[str]:
    """Return the names of a data set's classes, if it has some; those of very many classes are not recorded."""
    names = getattr(source, "class_names", ())
    return list(names) if len(names) <= _MOST_NAMES else []
