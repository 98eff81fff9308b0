"""The options of repair: compensation, recalibration, ridge, and training without labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cleanai_ray.errors import PruningError

COMPENSATIONS = ("none", "closed_form", "sequential", "unfolded", "blockwise")
BATCH_NORMS = ("none", "relative", "reset")
AUTO_BATCH_NORMS = ("none", "relative")
RIDGES: dict[str, tuple[float | None, ...]] = {
    "none": (None,),
    "closed_form": (1e-3, 1e-2),
    "sequential": (1e-3,),
    "unfolded": (None,),
    "blockwise": (None,),
}
"""Regularisations that `auto` tries of each compensation; the first one is the default. None: chosen layer by layer."""

_AUTO = ("none", "closed_form", "unfolded")
_AUTO_TRAINED = (*_AUTO, "blockwise")


@dataclass(frozen=True, kw_only=True)
class RepairOptions:
    """The options of a repair.

    Attributes:
        compensation: `auto`, `none`, `closed_form`, `sequential`, `unfolded` or `blockwise`. `auto` compares `none`,
            `closed_form` and `unfolded`, and with `distill_steps` also `blockwise`.
        batch_norm: `auto`, `none`, `relative` or `reset`; auto tries none and relative.
        ridge: Regularisation of the compensation, as a share of the mean variance. None: the first of its `RIDGES`;
            compensation `auto` tries every one of them.
        block_steps: Training steps of each block, for `blockwise`.
        distill_steps: Steps of end-to-end distillation after everything else; 0: none.
        seconds: Most seconds of training, over all blocks and distillation; None: no limit.
        mirror: True if training may mirror images left to right.
        seed: Seed of the order and of the augmentation in training.

    Raises:
        PruningError: When a compensation or a recalibration is unknown, or a number is not allowed.
    """

    compensation: str = "auto"
    batch_norm: str = "auto"
    ridge: float | None = None
    block_steps: int = 600
    distill_steps: int = 0
    seconds: float | None = None
    mirror: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        _require("compensation", self.compensation, COMPENSATIONS)
        _require("batch_norm", self.batch_norm, BATCH_NORMS)
        for field, value, least in (("block_steps", self.block_steps, 1), ("distill_steps", self.distill_steps, 0)):
            if value < least:
                raise PruningError(f"{field} is {value}; allowed: an integer of at least {least}")
        if self.seconds is not None and not self.seconds > 0:
            raise PruningError(f"seconds is {self.seconds}; allowed: None or a number above 0")

    @property
    def holds_back(self) -> bool:
        """True if a fifth of the images is held back, to compare variants or to decide which weights are kept."""
        return "auto" in (self.compensation, self.batch_norm) or self.trains

    @property
    def trains(self) -> bool:
        """True if weights are trained, by `blockwise` or by distillation."""
        return self.compensation == "blockwise" or self.distill_steps > 0

    @property
    def variants(self) -> tuple[tuple[str, float | None], ...]:
        """Compensations to try, each with its ridge."""
        names: tuple[str, ...] = (self.compensation,)
        if self.compensation == "auto":
            names = _AUTO_TRAINED if self.distill_steps else _AUTO
        return tuple((name, ridge) for name in names for ridge in self._ridges(name))

    def _ridges(self, name: str) -> tuple[float | None, ...]:
        if self.ridge is not None and name != "none":
            return (self.ridge,)
        return RIDGES[name] if self.compensation == "auto" else RIDGES[name][:1]

    @property
    def batch_norms(self) -> tuple[str, ...]:
        """Recalibrations to try."""
        return AUTO_BATCH_NORMS if self.batch_norm == "auto" else (self.batch_norm,)


def _require(field: str, value: str, allowed: Sequence[str]) -> None:
    if value != "auto" and value not in allowed:
        raise PruningError(f"{field} is '{value}'; allowed: auto, {', '.join(allowed)}")
