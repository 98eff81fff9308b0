"""Activation statistics: a value that can be merged, and the recorders that fill it during forward passes."""

from cleanai_ray.statistics.calibration import CalibrationOptions, calibrate, count_sections
from cleanai_ray.statistics.channel_statistics import ActivationStatistics, LayerStatistics
from cleanai_ray.statistics.histogram import ActivationHistograms, LayerHistogram, Ranges

__all__ = [
    "ActivationHistograms",
    "ActivationStatistics",
    "CalibrationOptions",
    "LayerHistogram",
    "LayerStatistics",
    "Ranges",
    "calibrate",
    "count_sections",
]
