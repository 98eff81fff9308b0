"""Question c: is the product of weight and activation better than either of them."""

from __future__ import annotations

from cleanai_ray.analysis.answers import Draft
from cleanai_ray.analysis.numbers import signed
from cleanai_ray.analysis.questions.base import Evidence, Question, support
from cleanai_ray.registry import QUESTIONS

_ALONE = ("coverage", "magnitude")
"""The method that reads activations alone, and the one that reads weights alone."""


@QUESTIONS.register("c")
class WandaOrEither(Question):
    """Wanda against coverage and against magnitude; the comparison that supports it less decides."""

    position = 40
    text = "Is weight \N{MULTIPLICATION SIGN} activation (wanda) better than either alone?"

    def draft(self, evidence: Evidence) -> Draft:
        """Compare wanda with both; better than either means better than both."""
        missing = evidence.absent("wanda", *_ALONE)
        if missing:
            return Draft(missing=missing)
        found = {name: evidence.compare("wanda", name) for name in _ALONE}
        decisive = min(_ALONE, key=lambda name: support(found[name]))
        other = next(name for name in _ALONE if name != decisive)
        beyond = found[other].effect
        remark = "" if beyond is None else f"Against {evidence.name(other)}: {signed(beyond)} points."
        return Draft(found[decisive], f"wanda against {evidence.name(decisive)}", remark)
