"""A run directory as every process of a cluster reaches it, and who writes it."""

from __future__ import annotations

from typing import Any

import ray

from cleanai_ray.storage.run_directory import RunDirectory

CHECKPOINTS = "cache/checkpoints"
"""The folder of what trainings go on from when they were interrupted."""


class RunFiles:
    """Reads and writes a run directory from any worker.

    On an object store every worker does so itself, so that nothing passes through the driver's node. A folder is that
    of the driver's node, and only the writer there touches it: it need not be shared.

    Args:
        run: The run directory.
        writer: Handle of the `RunWriter` on the driver's node.
    """

    def __init__(self, run: RunDirectory, writer: Any) -> None:
        self._run = run
        self._writer = writer

    def read(self, name: str, inputs: str | None = None) -> bytes | None:
        """Return a file's content; None where there is none, or none that was completed from inputs of this digest."""
        if self._run.is_local:
            return ray.get(self._writer.read_file.remote(name, inputs))
        return read_file(self._run, name, inputs)

    def write(self, name: str, content: bytes, inputs: str | None = None) -> None:
        """Write a file, and then its marker where the digest of its inputs is given."""
        if self._run.is_local:
            ray.get(self._writer.write_file.remote(name, content, inputs))
        else:
            write_file(self._run, name, content, inputs)

    def storage(self, folder: str) -> tuple[str, Any]:
        """Return a folder of the run directory as Ray's own storage wants it: its path, and the filesystem or None."""
        return self._run.storage(folder)

    def note_unreadable(self, found: dict[str, str]) -> None:
        """Add samples that could not be decoded to the study's list.

        Raises:
            DataError: When there are more of them than `data.skip_unreadable` allows.
        """
        if found:
            ray.get(self._writer.note_unreadable.remote(found))


class CheckpointFile:
    """A checkpoint store (`training.context.CheckpointStore`) in a run directory: a file, and one more for each part.

    Args:
        files: The run directory.
        name: The file of `checkpoint_name`; parts of a training that have a name are in its `checkpoint_folder`.
    """

    def __init__(self, files: RunFiles, name: str) -> None:
        self._files = files
        self._name = name

    def save(self, content: bytes, part: str = "") -> None:
        """Replace a part's file, wholly or not at all."""
        self._files.write(self._file(part), content)

    def load(self, part: str = "") -> bytes | None:
        """Return the content of a part's file, or None where there is none."""
        return self._files.read(self._file(part))

    def _file(self, part: str) -> str:
        return f"{checkpoint_folder(self._name)}/{part}.pt" if part else self._name


def record_name(trial_id: str) -> str:
    """Return the file that holds a trial's record."""
    return f"trials/{trial_id}.json"


def checkpoint_name(owner: str, inputs: str) -> str:
    """Return the file that keeps the training of a trial, or of the dense model, for inputs of this digest."""
    return f"{CHECKPOINTS}/{owner}-{inputs}.pt"


def checkpoint_folder(name: str) -> str:
    """Return the folder of what belongs to a file of `checkpoint_name`: the parts of a training in several."""
    return name.removesuffix(".pt")


def read_file(run: RunDirectory, name: str, inputs: str | None) -> bytes | None:
    """Return a file's content; None where there is none, or none that was completed from inputs of this digest."""
    if not (run.exists(name) and (inputs is None or run.is_complete(name, inputs))):
        return None
    return run.read_bytes(name)


def write_file(run: RunDirectory, name: str, content: bytes, inputs: str | None) -> None:
    """Write a file, and then its marker where the digest of its inputs is given."""
    run.write_bytes(name, content)
    if inputs is not None:
        run.mark(name, inputs)
