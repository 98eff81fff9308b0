"""The interface between the training loop and its surroundings: a single process, or one of several.

The loop uses nothing but `TrainingContext`, so it runs unchanged in a test, in a trial and under Ray Train.
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
    """Training cannot continue: the loss is not finite, or the inputs do not fit together."""

    in_all_processes = True


class TrainingContext(ABC):
    """The surroundings of one training process.

    Every process calls every method, in the same order; an implementation decides which processes act.

    Args:
        rank: Index of this process, from 0.
        world_size: Number of processes.
        device: Where this process computes.

    Attributes:
        num_parts: Parts in which a process computes its share of a batch, since memory ran out with fewer.
    """

    def __init__(self, *, rank: int, world_size: int, device: torch.device | str) -> None:
        self.num_parts = 1
        self.rank = rank
        self.world_size = world_size
        self.device = torch.device(device)

    @abstractmethod
    def report(self, row: Mapping[str, Any]) -> None:
        """Receive the row of a finished epoch: the columns of `schemas.HISTORY` except trial_id and step."""

    @abstractmethod
    def save_checkpoint(self, state: dict[str, Any], part: str = "") -> None:
        """Store a state of plain values and CPU tensors; it replaces the previous state of the same part."""

    @abstractmethod
    def load_checkpoint(self, part: str = "") -> dict[str, Any] | None:
        """Return the state that was last saved for a part, or None."""

    @abstractmethod
    def all_reduce(self, tensor: Tensor) -> Tensor:
        """Return the sum of a tensor over all processes."""

    def wrap_model(self, model: nn.Module) -> nn.Module:
        """Return the module whose forward pass trains, with gradients averaged over all processes."""
        return model

    @contextmanager
    def together(self, model: nn.Module, part: TrainingPart) -> Iterator[None]:
        """Have the other processes train a model while the first, which alone calls this, trains it inside."""
        yield

    def gather(self, model: nn.Module, part: ScoringPart, work: Callable[[], _Found]) -> list[_Found]:
        """Have every process do its share of a part on a model, and return their results, by rank.

        Only the first process calls it; the others call `contribute`.

        Raises:
            CleanAIError: The error of the lowest rank that raised one, once all processes are done.
        """
        return [work()]

    def dismiss(self) -> None:  # noqa: B027 - a single process has no others
        """Tell the other processes that there is no more shared work; called by the first only."""


class CheckpointStore(Protocol):
    """Stores one checkpoint, as bytes, for each part of a training."""

    def save(self, content: bytes, part: str = "") -> None:
        """Replace the checkpoint of a part, wholly or not at all."""

    def load(self, part: str = "") -> bytes | None:
        """Return the checkpoint of a part, or None."""


def encode_checkpoint(state: dict[str, Any]) -> bytes:
    """Return a state of plain values and tensors as bytes."""
    stream = io.BytesIO()
    torch.save(state, stream)
    return stream.getvalue()


def decode_checkpoint(content: bytes) -> dict[str, Any]:
    """Return the state that `encode_checkpoint` serialised; code in it is not run.

    Raises:
        ArtifactError: When the bytes are not a checkpoint.
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
        checkpoints: Where checkpoints are stored; by default none are.
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
