"""Activation statistics: a mergeable value, and the recorders that fill it during forward passes."""

from cleanai_ray.statistics.calibration import calibrate, count_sections
from cleanai_ray.statistics.channel_statistics import ActivationStatistics, LayerStatistics
from cleanai_ray.statistics.histogram import ActivationHistograms, LayerHistogram, Ranges

__all__ = [
    "ActivationHistograms",
    "ActivationStatistics",
    "LayerHistogram",
    "LayerStatistics",
    "Ranges",
    "calibrate",
    "count_sections",
]
