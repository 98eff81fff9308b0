"""Question f2: does any method beat random pruning after repair."""

from __future__ import annotations

from cleanai_ray.analysis.questions.base import BeatsRandom
from cleanai_ray.registry import QUESTIONS


@QUESTIONS.register("f2")
class RandomAfterRepair(BeatsRandom):
    """Every method against random, by the accuracy after repair."""

    position = 80
    text = "Does any method beat random, after repair?"
    stage = "repaired"
    words = "after repair"
