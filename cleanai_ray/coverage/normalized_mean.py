"""Coverage metric `normalized_mean`."""

from torch import Tensor

from cleanai_ray.registry import METRICS
from cleanai_ray.statistics.channel_statistics import LayerStatistics


@METRICS.register("normalized_mean")
def normalized_mean(statistics: LayerStatistics) -> Tensor:
    """Mean activation over the samples, relative to the layer's largest magnitude.

    mean_i s[i,c] / M, where s[i,c] is the mean over the positions of sample i and M the largest |x| of the layer. A
    layer that is zero throughout has coverage 0.
    """
    largest = statistics.largest_magnitude
    mean = statistics.sum_sample_means / statistics.num_samples
    return mean / largest if largest > 0 else mean
