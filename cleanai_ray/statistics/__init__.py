"""Activation statistics: a mergeable value, and the recorder that fills it during forward passes."""

from cleanai_ray.statistics.calibration import calibrate
from cleanai_ray.statistics.channel_statistics import ActivationStatistics, LayerStatistics

__all__ = ["ActivationStatistics", "LayerStatistics", "calibrate"]
