"""The options of repair: compensation, recalibration and ridge."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cleanai_ray.errors import PruningError

COMPENSATIONS = ("none", "closed_form", "sequential")
BATCH_NORMS = ("none", "relative", "reset")
AUTO_BATCH_NORMS = ("none", "relative")
RIDGES = (1e-3, 1e-2)


@dataclass(frozen=True, kw_only=True)
class RepairOptions:
    """The options of a repair.

    Attributes:
        compensation: `auto`, `none`, `closed_form` or `sequential`.
        batch_norm: `auto`, `none`, `relative` or `reset`; auto tries none and relative.
        ridge: Regularisation of the compensation, as a share of the mean variance. None: 0.001; compensation `auto`
            tries every one of `RIDGES`.

    Raises:
        PruningError: When a compensation or a recalibration is unknown.
    """

    compensation: str = "auto"
    batch_norm: str = "auto"
    ridge: float | None = None

    def __post_init__(self) -> None:
        _require("compensation", self.compensation, COMPENSATIONS)
        _require("batch_norm", self.batch_norm, BATCH_NORMS)

    @property
    def is_auto(self) -> bool:
        """True if variants are compared."""
        return "auto" in (self.compensation, self.batch_norm)

    @property
    def compensations(self) -> tuple[str, ...]:
        """Compensations to try."""
        return COMPENSATIONS if self.compensation == "auto" else (self.compensation,)

    @property
    def batch_norms(self) -> tuple[str, ...]:
        """Recalibrations to try."""
        return AUTO_BATCH_NORMS if self.batch_norm == "auto" else (self.batch_norm,)

    @property
    def ridges(self) -> tuple[float, ...]:
        """Regularisations to try."""
        if self.ridge is not None:
            return (self.ridge,)
        return RIDGES if self.compensation == "auto" else RIDGES[:1]


def _require(field: str, value: str, allowed: Sequence[str]) -> None:
    if value != "auto" and value not in allowed:
        raise PruningError(f"{field} is '{value}'; allowed: auto, {', '.join(allowed)}")
