"""Question f1: does any method beat random pruning before repair."""

from __future__ import annotations

from cleanai_ray.analysis.questions.base import BeatsRandom
from cleanai_ray.registry import QUESTIONS


@QUESTIONS.register("f1")
class RandomBeforeRepair(BeatsRandom):
    """Every method against random, by the accuracy before repair."""

    position = 70
    text = "Does any method beat random, before repair?"
    stage = "pruned"
    words = "before repair"
