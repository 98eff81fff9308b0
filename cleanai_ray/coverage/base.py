"""Metrics that read a histogram: how they declare it, and how they get the counts of its bins."""

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
    """Declare that a metric reads the bins of a layer's range, for which calibration makes a second pass."""
    metric.needs_sections = True  # type: ignore[attr-defined]
    return metric


def needs_sections(name: str | None) -> bool:
    """Return whether a metric reads the bins; False for None, which is a trial without a metric."""
    return name is not None and bool(getattr(METRICS.get(name), "needs_sections", False))


def computable_metrics(statistics: LayerStatistics) -> dict[str, Metric]:
    """Return the registered metrics that can be computed from some statistics, by name."""
    counted = statistics.histogram is not None
    return {name: METRICS.get(name) for name in METRICS.names() if counted or not needs_sections(name)}


def section_counts(statistics: LayerStatistics, metric: str) -> Tensor:
    """Return the number of a channel's activations in each of the k bins, float64 of shape [C, k].

    Args:
        statistics: Statistics of a layer.
        metric: Name of the metric, for the error message.

    Raises:
        CalibrationError: When calibration did not count them.
    """
    if statistics.histogram is None:
        raise CalibrationError(
            f"coverage metric '{metric}' reads the bins of each layer's range, and the statistics have none; "
            "calibrate with sections=64, or shards with count_sections and with_histograms"
        )
    return statistics.histogram.counts
