"""Coverage metric `frequency`."""

from torch import Tensor

from cleanai_ray.registry import METRICS
from cleanai_ray.statistics.channel_statistics import LayerStatistics


@METRICS.register("frequency")
def frequency(statistics: LayerStatistics) -> Tensor:
    """Share of samples in which the channel is active, that is, its mean over positions exceeds the threshold.

    #{i : s[i,c] > threshold} / N, counted per sample (neuron coverage of DeepXplore, Pei et al. 2017, as a frequency).
    """
    return statistics.active_samples / statistics.num_samples
