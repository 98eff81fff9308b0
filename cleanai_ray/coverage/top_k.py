"""Coverage metric `top_k`."""

from torch import Tensor

from cleanai_ray.registry import METRICS
from cleanai_ray.statistics.channel_statistics import LayerStatistics


@METRICS.register("top_k")
def top_k(statistics: LayerStatistics) -> Tensor:
    """Share of samples in which the channel is among the k strongest of its layer (TKNC, DeepGauge).

    The strength of a channel is its mean over the positions of the sample, s[i,c]. k is the calibration's `top_k`, and
    at most one less than the layer's channels; a channel that ties with the first one after the k does not count. Top-k
    neuron coverage of Ma et al. 2018 (arXiv:1803.07519), as a frequency.
    """
    return statistics.top_samples / statistics.num_samples
