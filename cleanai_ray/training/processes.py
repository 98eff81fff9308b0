"""One of several processes that train together, by torch.distributed: NCCL with CUDA, gloo elsewhere."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from cleanai_ray.errors import CleanAIError
from cleanai_ray.training.context import (
    CheckpointStore,
    TrainingContext,
    decode_checkpoint,
    encode_checkpoint,
)
from cleanai_ray.training.part import ScoringPart, TrainingPart

_Found = TypeVar("_Found")


class ProcessGroupContext(TrainingContext):
    """This process among those of torch's default process group, which must exist.

    The first process writes and reads checkpoints; all processes get the same state.

    Args:
        device: Where this process computes.
        on_row: Called in every process with the row of every epoch, which is the same in all.
        checkpoints: Where checkpoints are stored; by default none are.

    Attributes:
        is_awaited: True while the others are in a training or scoring and would wait for this process for ever.
    """

    def __init__(
        self,
        *,
        device: torch.device | str,
        on_row: Callable[[Mapping[str, Any]], None] | None = None,
        checkpoints: CheckpointStore | None = None,
    ) -> None:
        super().__init__(rank=distributed.get_rank(), world_size=distributed.get_world_size(), device=device)
        self._on_row = on_row
        self._checkpoints = checkpoints
        self.is_awaited = False
        self._has_dismissed = False

    def report(self, row: Mapping[str, Any]) -> None:
        """Call `on_row`."""
        if self._on_row is not None:
            self._on_row(row)

    def save_checkpoint(self, state: dict[str, Any], part: str = "") -> None:
        """Have the first process write to the checkpoint store, if there is one."""
        if self.rank == 0 and self._checkpoints is not None:
            self._checkpoints.save(encode_checkpoint(state), part)

    def load_checkpoint(self, part: str = "") -> dict[str, Any] | None:
        """Return what the first process reads from the checkpoint store, if there is one and it holds something."""
        content = None if self.rank or self._checkpoints is None else self._checkpoints.load(part)
        content = self._from_first(content)
        return None if content is None else decode_checkpoint(content)

    def all_reduce(self, tensor: Tensor) -> Tensor:
        """Return the sum of a tensor over all processes."""
        total = tensor.clone()
        distributed.all_reduce(total)
        return total

    def wrap_model(self, model: nn.Module) -> nn.Module:
        """Return the model as a DistributedDataParallel; processes begin with the weights of the first."""
        on_cuda = self.device.type == "cuda"
        return DistributedDataParallel(model, device_ids=[self.device] if on_cuda else None)

    @contextmanager
    def together(self, model: nn.Module, part: TrainingPart) -> Iterator[None]:
        """Send the model and the part to the other processes."""
        self._announce(model, part)
        try:
            yield
        except CleanAIError as error:
            self.is_awaited = not error.in_all_processes
            raise
        self.is_awaited = False

    def gather(self, model: nn.Module, part: ScoringPart, work: Callable[[], _Found]) -> list[_Found]:
        """Send the model and the part to the other processes, and return the results of all, by rank."""
        self._announce(model, part)
        found = self._exchange(work)
        self.is_awaited = False
        for _, error in found:
            if error is not None:
                raise error
        return [value for value, _ in found]

    def contribute(self, work: Callable[[], Any]) -> None:
        """Do this process's share of the work that the first process gathers, and send it the result or the error."""
        self._exchange(work)

    def _announce(self, model: nn.Module, part: TrainingPart | ScoringPart) -> None:
        stream = io.BytesIO()
        torch.save((model, part), stream)
        self.is_awaited = True
        self._from_first(stream.getvalue())

    def _exchange(self, work: Callable[[], Any]) -> list[tuple[Any, CleanAIError | None]]:
        """Return, in every process, the result or the error of each."""
        own: tuple[Any, CleanAIError | None]
        try:
            own = work(), None
        except CleanAIError as error:
            own = None, error
        found: list[Any] = [None] * self.world_size
        distributed.all_gather_object(found, own)
        return found

    def dismiss(self) -> None:
        """Tell the other processes once that there is no more shared work."""
        if not self._has_dismissed:
            self._has_dismissed = True
            self._from_first(None)

    def await_part(self) -> tuple[nn.Module, TrainingPart | ScoringPart] | None:
        """Return the next shared work, and its model on this process's device; None if there is no more."""
        content = self._from_first(None)
        if content is None:
            return None
        return torch.load(io.BytesIO(content), map_location=self.device, weights_only=False)

    def _from_first(self, content: bytes | None) -> bytes | None:
        """Return, in every process, the content that the first one has."""
        values = [content]
        distributed.broadcast_object_list(values, src=0, device=self.device)
        return values[0]
