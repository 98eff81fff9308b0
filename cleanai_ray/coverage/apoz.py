"""Coverage metric `apoz`."""

from torch import Tensor

from cleanai_ray.registry import METRICS
from cleanai_ray.statistics.channel_statistics import LayerStatistics


@METRICS.register("apoz")
def apoz(statistics: LayerStatistics) -> Tensor:
    """Share of positions with a positive activation: 1 - APoZ of Hu et al. 2016 (arXiv:1607.03250)."""
    return statistics.positive_positions / statistics.num_positions
