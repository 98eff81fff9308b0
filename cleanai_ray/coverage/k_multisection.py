"""Coverage metric `k_multisection`."""

from torch import Tensor

from cleanai_ray.coverage.base import reads_sections, section_counts
from cleanai_ray.registry import METRICS
from cleanai_ray.statistics.channel_statistics import LayerStatistics


@METRICS.register("k_multisection")
@reads_sections
def k_multisection(statistics: LayerStatistics) -> Tensor:
    """Share of the k bins of its layer's range that the channel visits (KMNC, DeepGauge).

    k-multisection neuron coverage of Ma et al. 2018 (arXiv:1803.07519), over the range of the whole layer rather than
    the neuron's own, so that channels of a layer can be compared. A constant layer has one bin, which all visit.
    """
    counts = section_counts(statistics, "k_multisection")
    return (counts > 0).double().mean(dim=1)
