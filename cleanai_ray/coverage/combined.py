"""Coverage metric `combined`."""

from torch import Tensor

from cleanai_ray.coverage.frequency import frequency
from cleanai_ray.coverage.normalized_mean import normalized_mean
from cleanai_ray.registry import METRICS
from cleanai_ray.statistics.channel_statistics import LayerStatistics


@METRICS.register("combined")
def combined(statistics: LayerStatistics) -> Tensor:
    """Geometric mean of normalized_mean (where positive) and frequency: strong and often active."""
    return (normalized_mean(statistics).clamp_min(0) * frequency(statistics)).sqrt()
