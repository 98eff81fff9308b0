"""What the training loop needs from its surroundings: one process, or one of several.

The loop is written against `TrainingContext` alone, so that it runs unchanged in a test, in a trial and behind Ray
Train.
"""

from __future__ import annotations

import io
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

from cleanai_ray.errors import ArtifactError, CleanAIError
from cleanai_ray.training.part import ScoringPart, TrainingPart

_Found = TypeVar("_Found")


class TrainingError(CleanAIError):
    """Training cannot go on: the loss is not finite, or its inputs do not fit together."""


class TrainingContext(ABC):
    """The surroundings of one training process.

    Every process calls every method, in the same order; an implementation decides which of them act.

    Args:
        rank: Index of this process, from 0.
        world_size: Number of processes.
        device: Where this process computes.
    """

    def __init__(self, *, rank: int, world_size: int, device: torch.device | str) -> None:
        self.rank = rank
        self.world_size = world_size
        self.device = torch.device(device)

    @abstractmethod
    def report(self, row: Mapping[str, Any]) -> None:
        """Take the row of an epoch that has ended: the columns of `schemas.HISTORY` except trial_id and step."""

    @abstractmethod
    def save_checkpoint(self, state: dict[str, Any], part: str = "") -> None:
        """Keep a state of plain values and CPU tensors, in place of the one before of the part of that name."""

    @abstractmethod
    def load_checkpoint(self, part: str = "") -> dict[str, Any] | None:
        """Return the state of a part that was saved last, or None."""

    @abstractmethod
    def all_reduce(self, tensor: Tensor) -> Tensor:
        """Return the sum of a tensor over all processes."""

    def wrap_model(self, model: nn.Module) -> nn.Module:
        """Return the module whose forward pass trains, with gradients averaged over all processes."""
        return model

    @contextmanager
    def together(self, model: nn.Module, part: TrainingPart) -> Iterator[None]:
        """Have the other processes train a model with this one, which does so inside; the first one alone calls it."""
        yield

    def gather(self, model: nn.Module, part: ScoringPart, work: Callable[[], _Found]) -> list[_Found]:
        """Have every process do its share of a part on a model, and return what each found, by rank.

        The first one alone calls it; the others answer by `contribute`.

        Raises:
            CleanAIError: The first that a process raised, by rank, once all are done.
        """
        return [work()]

    def dismiss(self) -> None:  # noqa: B027 - a single process has nobody to tell
        """Tell the other processes that nothing more is done together; called by the first one alone."""


class CheckpointStore(Protocol):
    """Keeps the bytes of one checkpoint for each part of a training."""

    def save(self, content: bytes, part: str = "") -> None:
        """Replace what is kept for a part, wholly or not at all."""

    def load(self, part: str = "") -> bytes | None:
        """Return what is kept for a part, or None."""


def encode_checkpoint(state: dict[str, Any]) -> bytes:
    """Return a state of plain values and tensors as bytes."""
    stream = io.BytesIO()
    torch.save(state, stream)
    return stream.getvalue()


def decode_checkpoint(content: bytes) -> dict[str, Any]:
    """Return the state that `encode_checkpoint` was given; no code in it is run.

    Raises:
        ArtifactError: When the bytes are not such a state.
    """
    try:
        return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:
        reason = str(error).strip().partition("\n")[0]
        raise ArtifactError(f"a checkpoint of {len(content)} bytes cannot be read: {reason}") from error


class LocalContext(TrainingContext):
    """The only process of a training.

    Args:
        device: Where to compute.
        on_row: Called with the row of every epoch.
        checkpoints: Where checkpoints are kept; without it there are none.
    """

    def __init__(
        self,
        *,
        device: torch.device | str = "cpu",
        on_row: Callable[[Mapping[str, Any]], None] | None = None,
        checkpoints: CheckpointStore | None = None,
    ) -> None:
        super().__init__(rank=0, world_size=1, device=device)
        self._on_row = on_row
        self._checkpoints = checkpoints

    def report(self, row: Mapping[str, Any]) -> None:
        """Call `on_row`."""
        if self._on_row is not None:
            self._on_row(row)

    def save_checkpoint(self, state: dict[str, Any], part: str = "") -> None:
        """Write to the checkpoint store, if there is one."""
        if self._checkpoints is not None:
            self._checkpoints.save(encode_checkpoint(state), part)

    def load_checkpoint(self, part: str = "") -> dict[str, Any] | None:
        """Read from the checkpoint store, if there is one and it holds something."""
        content = None if self._checkpoints is None else self._checkpoints.load(part)
        return None if content is None else decode_checkpoint(content)

    def all_reduce(self, tensor: Tensor) -> Tensor:
        """Return the tensor itself."""
        return tensor
