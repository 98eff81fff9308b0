"""Importance method `hybrid`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from cleanai_ray.graph.graph import ChannelGroup
from cleanai_ray.importance.base import ImportanceMethod, ScoringContext, create_method
from cleanai_ray.registry import METHODS

_NEEDS = (
    "uses_coverage_metric",
    "needs_activations",
    "needs_outputs",
    "needs_gradients",
    "needs_squared_gradients",
    "needs_curves",
    "remeasures",
)


@METHODS.register("hybrid")
class Hybrid(ImportanceMethod):
    """Geometric mean of two other methods' scores (wanda and magnitude unless options say otherwise).

    sqrt(a/mean(a) x b/mean(b)), with means over the dependency group; a score below zero counts as zero. A channel
    scores high if both methods rate it high. `first` and `second` are names of methods, `first_options` and
    `second_options` their options. The hybrid needs what its parts need: if one of them uses a coverage metric, the
    hybrid runs once for each of `sweep.coverage_metrics`.
    """

    def __init__(
        self,
        first: str = "wanda",
        second: str = "magnitude",
        first_options: Mapping[str, Any] | None = None,
        second_options: Mapping[str, Any] | None = None,
    ) -> None:
        options = _options("first_options", first_options), _options("second_options", second_options)
        if (first, options[0]) == (second, options[1]):
            raise ValueError(f"first and second are both '{first}'; allowed: two different methods")
        self._parts = _part("first", first, options[0]), _part("second", second, options[1])
        for name in _NEEDS:
            setattr(self, name, any(getattr(part, name) for part in self._parts))
        if self.needs_gradients and self.needs_squared_gradients:
            raise ValueError(
                f"first is '{first}' and second is '{second}', which read gradients and squared gradients; allowed: at "
                "most one of the two kinds"
            )

    @property
    def reads_data(self) -> bool:
        """True if one of the parts reads calibration data."""
        return any(part.reads_data for part in self._parts)

    def score(self, group: ChannelGroup, context: ScoringContext) -> Tensor:
        """Return the geometric mean of the parts' normalised scores, [num_channels]."""
        first, second = (_normalised(part.score(group, context)) for part in self._parts)
        return (first * second).sqrt()


def _options(option: str, value: Mapping[str, Any] | None) -> dict[str, Any]:
    if value is not None and not isinstance(value, Mapping):
        raise ValueError(f"{option} is {value!r}; allowed: a mapping, the options of the method")
    return dict(value or {})


def _part(option: str, name: str, options: dict[str, Any]) -> ImportanceMethod:
    """Return one of the two methods.

    Raises:
        ValueError: When the name is unknown, or is a hybrid itself.
    """
    allowed = [known for known in METHODS.names() if not _is_hybrid(known)]
    if name not in allowed:
        raise ValueError(f"{option} is '{name}'; allowed: {', '.join(allowed)}")
    return create_method(name, options)


def _is_hybrid(name: str) -> bool:
    method = METHODS.get(name)
    return isinstance(method, type) and issubclass(method, Hybrid)


def _normalised(score: Tensor) -> Tensor:
    score = score.detach().double().cpu().clamp_min(0)
    mean = score.mean()
    return score / mean if mean > 0 else score
