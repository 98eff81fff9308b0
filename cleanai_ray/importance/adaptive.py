"""Importance method `adaptive`."""

from cleanai_ray.importance.coverage import Coverage
from cleanai_ray.registry import METHODS


@METHODS.register("adaptive")
class Adaptive(Coverage):
    """Coverage, measured again on the smaller network before every pruning step; with one step it equals coverage."""

    remeasures = True
