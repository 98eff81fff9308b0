"""The places of checkpoints in a run directory, and the checkpoint store of a training."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cleanai_ray.executors.writer import RunStore

CHECKPOINTS = "cache/checkpoints"
"""The folder of the checkpoints from which interrupted trainings resume."""

FAULTS = "cache/faults"
"""The folder of notes on the trials in which a GPU failed once; the second time, the trial has failed."""


class CheckpointFile:
    """A checkpoint store (`training.context.CheckpointStore`) in a run directory: a file, and one for each named part.

    Args:
        store: The run directory.
        name: The file, from `checkpoint_name`; named parts of a training are in its `checkpoint_folder`.
    """

    def __init__(self, store: RunStore, name: str) -> None:
        self._store = store
        self._name = name

    def save(self, content: bytes, part: str = "") -> None:
        """Replace a part's file, wholly or not at all."""
        self._store.write(self._file(part), content)

    def load(self, part: str = "") -> bytes | None:
        """Return the content of a part's file, or None if there is no such file."""
        return self._store.read(self._file(part))

    def _file(self, part: str) -> str:
        return f"{checkpoint_folder(self._name)}/{part}.pt" if part else self._name


def fault_name(trial_id: str) -> str:
    """Return the file that says that a GPU failed during a trial."""
    return f"{FAULTS}/{trial_id}.txt"


def checkpoint_name(owner: str, inputs: str) -> str:
    """Return the checkpoint file of a trial, or of the dense model, for inputs with this digest."""
    return f"{CHECKPOINTS}/{owner}-{inputs}.pt"


def checkpoint_folder(name: str) -> str:
    """Return the folder for the named parts of a training, beside its file from `checkpoint_name`."""
    return name.removesuffix(".pt")
