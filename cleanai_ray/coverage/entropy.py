"""Coverage metric `entropy`."""

import math

import torch
from torch import Tensor

from cleanai_ray.coverage.base import reads_sections, section_counts
from cleanai_ray.registry import METRICS
from cleanai_ray.statistics.channel_statistics import LayerStatistics


@METRICS.register("entropy")
@reads_sections
def entropy(statistics: LayerStatistics) -> Tensor:
    """Entropy of the channel's activations over the k bins of its layer's range, relative to log k.

    -sum_j p_j log(p_j) / log(k), where p_j is the share of the channel's activations in bin j (Shannon 1948): 0 for a
    channel that stays in one bin, 1 for one that visits all of them equally often.
    """
    counts = section_counts(statistics, "entropy")
    shares = counts / counts.sum(dim=1, keepdim=True)
    return torch.special.entr(shares).sum(dim=1) / math.log(counts.shape[1])
