"""Question b2: is coverage better than Taylor."""

from __future__ import annotations

from cleanai_ray.analysis.questions.base import Versus
from cleanai_ray.registry import QUESTIONS


@QUESTIONS.register("b2")
class CoverageOrTaylor(Versus):
    """Coverage against Taylor, cell by cell."""

    position = 30
    text = "Is coverage better than Taylor?"
    first = "coverage"
    second = "taylor"
