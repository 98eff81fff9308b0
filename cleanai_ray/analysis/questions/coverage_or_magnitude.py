"""Question b1: is coverage better than magnitude."""

from __future__ import annotations

from cleanai_ray.analysis.questions.base import Versus
from cleanai_ray.registry import QUESTIONS


@QUESTIONS.register("b1")
class CoverageOrMagnitude(Versus):
    """Coverage against magnitude, cell by cell."""

    position = 20
    text = "Is coverage better than magnitude?"
    first = "coverage"
    second = "magnitude"
