"""Coverage metric `mean_absolute`."""

from torch import Tensor

from cleanai_ray.registry import METRICS
from cleanai_ray.statistics.channel_statistics import LayerStatistics


@METRICS.register("mean_absolute")
def mean_absolute(statistics: LayerStatistics) -> Tensor:
    """Mean of the absolute activations over samples and positions (not the absolute of the mean)."""
    return statistics.sum_absolutes / statistics.num_positions
