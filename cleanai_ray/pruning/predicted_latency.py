"""The predicted time of a pruned model, as a cost that a budget limits."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, eq=False)
class PredictedLatency:
    """Milliseconds of a model that is narrower than the dense one, as a latency profile predicts them.

    Attributes:
        predict: Returns the milliseconds when each group of the dense model has lost a number of channels.
        dense_ms: Milliseconds of the dense model, which a budget is a fraction of.
    """

    predict: Callable[[Mapping[str, int]], float]
    dense_ms: float

    def after(self, gone: Mapping[str, int]) -> Callable[[Mapping[str, int]], float]:
        """Return the cost of removing more when each group has lost a number of channels already."""
        return lambda removed: self.predict({**gone, **{name: gone.get(name, 0) + n for name, n in removed.items()}})
