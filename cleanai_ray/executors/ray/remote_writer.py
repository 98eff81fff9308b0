"""Access to a run directory for every process of a Ray cluster."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cleanai_ray.config.study import Study
from cleanai_ray.executors.notes import Kind
from cleanai_ray.executors.writer import RunWriter, SavedTrialModel, read_file, write_file
from cleanai_ray.storage.run_directory import RunDirectory

_CONCURRENT_CALLS = 4


class RemoteWriter:
    """Reads and writes a run directory from any worker; a `RunStore`.

    One process, an actor on the driver's node, writes the trials, so that a run directory on that node's own disk works
    on any cluster. On an object store, every worker reads and writes other files itself, so that they do not pass
    through the driver's node.

    Args:
        run: The run directory.
        writer: Handle of the `RunWriter` on the driver's node.
    """

    def __init__(self, run: RunDirectory, writer: Any) -> None:
        self._run = run
        self.writer = writer

    def read(self, name: str, inputs: str | None = None) -> bytes | None:
        """See `RunWriter.read`."""
        return (
            ray.get(self.writer.read.remote(name, inputs)) if self._run.is_local else read_file(self._run, name, inputs)
        )

    def write(self, name: str, content: bytes, inputs: str | None = None) -> None:
        """See `RunWriter.write`."""
        if self._run.is_local:
            ray.get(self.writer.write.remote(name, content, inputs))
        else:
            write_file(self._run, name, content, inputs)

    def storage(self, folder: str = "") -> tuple[str, Any]:
        """Return a folder of the run directory in the form that Ray's storage takes: path, and filesystem or None."""
        return self._run.storage(folder)

    def note_unreadable(self, found: dict[str, str]) -> None:
        """See `RunWriter.note_unreadable`."""
        if found:
            ray.get(self.writer.note_unreadable.remote(found))

    def note(self, kind: Kind, found: dict[str, Any]) -> None:
        """See `RunWriter.note`."""
        if found:
            ray.get(self.writer.note.remote(kind, found))

    def begin_sweep(self, completed: list[str]) -> None:
        """See `RunWriter.begin_sweep`."""
        ray.get(self.writer.begin_sweep.remote(completed))

    def wants_model(self, row: dict[str, Any]) -> bool:
        """See `RunWriter.wants_model`."""
        return ray.get(self.writer.wants_model.remote(row))

    def write_trial(self, record: dict[str, Any], inputs: str, model: SavedTrialModel | None = None) -> None:
        """See `RunWriter.write_trial`."""
        ray.get(self.writer.write_trial.remote(record, inputs, model))

    def keep_model(self, trial_id: str) -> bool:
        """See `RunWriter.keep_model`."""
        return bool(ray.get(self.writer.keep_model.remote(trial_id)))

    def recorded(self, trials: list[tuple[str, str]]) -> dict[str, str]:
        """See `RunWriter.recorded`."""
        return ray.get(self.writer.recorded.remote(trials))

    def forget_checkpoints(self, names: list[str]) -> None:
        """See `RunWriter.forget_checkpoints`."""
        ray.get(self.writer.forget_checkpoints.remote(names))


@contextmanager
def remote_writer(study: Study, run: RunDirectory, driver_node: str) -> Iterator[RemoteWriter]:
    """Start the writer on the driver's node, and stop it when the context ends."""
    actor = ray.remote(RunWriter).options(
        name=f"writer-{study.name}-{uuid.uuid4().hex[:6]}",
        num_cpus=0,
        scheduling_strategy=NodeAffinitySchedulingStrategy(node_id=driver_node, soft=False),
        max_restarts=-1,
        max_task_retries=-1,
        max_concurrency=_CONCURRENT_CALLS,
    )
    writer: Any = actor.remote(run.location, study)
    try:
        yield RemoteWriter(run, writer)
    finally:
        ray.kill(writer)
