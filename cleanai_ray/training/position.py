"""The place within an epoch at which another process can go on."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cleanai_ray.training.context import TrainingContext

_AGREE_EVERY = 50
"""Steps after which several processes agree on whether to save: it takes a sum over all of them."""

RandomStates = dict[str, Tensor]
"""The states of torch's generators by device type, a row for each process, uint8 [processes, bytes]."""


@dataclass(frozen=True, kw_only=True)
class EpochPosition:
    """A part of an epoch that has run.

    Attributes:
        done: Steps, at least 1.
        sums: Sum of losses, hits and samples of this process, float64 [3].
        random_states: The generators' states after the last step; empty while the epoch runs.
    """

    done: int
    sums: Tensor
    random_states: RandomStates | None = None

    def state(self, context: TrainingContext) -> dict[str, Any]:
        """Return the position as plain values and tensors, with what all processes must restore; all call it."""
        sums = _rows(self.sums, context)
        return {"done": self.done, "sums": sums, "random_states": _random_states(context)}

    @classmethod
    def from_state(cls, state: dict[str, Any], context: TrainingContext) -> EpochPosition:
        """Return the position that `state` describes, for this process.

        The first process takes the sums of all: only their total matters, and there may be fewer processes than before.
        """
        sums = state["sums"].sum(0) if context.rank == 0 else torch.zeros(3, dtype=torch.float64)
        return cls(done=state["done"], sums=sums, random_states=state["random_states"])

    def restore_random_state(self, context: TrainingContext) -> None:
        """Set torch's generators as they were in the process of the same rank, if there was one."""
        for kind, states in (self.random_states or {}).items():
            if context.rank >= len(states):
                continue
            own = states[context.rank].clone()  # torch reads a view from the start of its storage, and crashes
            if kind == "cpu":
                torch.set_rng_state(own)
            elif context.device.type == kind:
                torch.cuda.set_rng_state(own, context.device)


class CheckpointClock:
    """Says when a checkpoint within an epoch is due.

    Args:
        minutes: Minutes between checkpoints; None for none.
        context: The processes, which must agree.
    """

    def __init__(self, minutes: float | None, context: TrainingContext) -> None:
        self._seconds = None if minutes is None else 60 * minutes
        self._context = context
        self._saved = time.monotonic()

    def is_due(self, step: int) -> bool:
        """Return whether to save after a step of an epoch; the same in all processes."""
        if self._seconds is None:
            return False
        late = time.monotonic() - self._saved >= self._seconds
        if self._context.world_size == 1:
            return late
        if step % _AGREE_EVERY:
            return False
        says = torch.full((), float(late and self._context.rank == 0), device=self._context.device)
        return bool(self._context.all_reduce(says).item())

    def has_saved(self) -> None:
        """Begin to wait again."""
        self._saved = time.monotonic()


def _random_states(context: TrainingContext) -> RandomStates:
    states = {"cpu": torch.get_rng_state()}
    if context.device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(context.device)
    return {kind: _rows(state, context) for kind, state in states.items()}


def _rows(own: Tensor, context: TrainingContext) -> Tensor:
    """Return the tensors of all processes, one a row, on the CPU."""
    if context.world_size == 1:
        return own[None].cpu()
    rows = torch.zeros(context.world_size, *own.shape, dtype=torch.float64, device=context.device)
    rows[context.rank] = own.to(rows)
    return context.all_reduce(rows).cpu().to(own.dtype)
