"""What a metric that reads the sections of a layer's range says so with, and gets them from."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from torch import Tensor

from cleanai_ray.errors import CalibrationError
from cleanai_ray.registry import METRICS
from cleanai_ray.statistics.channel_statistics import LayerStatistics

Metric = Callable[[LayerStatistics], Tensor]
M = TypeVar("M", bound=Metric)


def reads_sections(metric: M) -> M:
    """Say of a metric that it reads the sections, for which calibration makes a second pass."""
    metric.needs_sections = True  # type: ignore[attr-defined]
    return metric


def needs_sections(name: str | None) -> bool:
    """Whether the metric of a name reads the sections; None, a trial's lack of a metric, does not."""
    return name is not None and bool(getattr(METRICS.get(name), "needs_sections", False))


def computable_metrics(statistics: LayerStatistics) -> dict[str, Metric]:
    """Return the registered metrics that these statistics suffice for, by name."""
    counted = statistics.histogram is not None
    return {name: METRICS.get(name) for name in METRICS.names() if counted or not needs_sections(name)}


def section_counts(statistics: LayerStatistics, metric: str) -> Tensor:
    """Return the number of a channel's activations in each section, float64 of shape [C, k].

    Args:
        statistics: Statistics of a layer.
        metric: Name of the metric that asks.

    Raises:
        CalibrationError: When calibration counted none.
    """
    if statistics.histogram is None:
        raise CalibrationError(
            f"coverage metric '{metric}' reads the sections of each layer's range, and the statistics hold none; "
            "calibrate with sections=64, or shards with count_sections and with_histograms"
        )
    return statistics.histogram.counts
