"""Everything that speaks against using a study's result: one file per check, found by its registry."""

from __future__ import annotations

from cleanai_ray.analysis.frames import StudyFrames
from cleanai_ray.analysis.risks.base import Check, Risk
from cleanai_ray.registry import RISKS

_SEVERITIES = ("high", "medium", "info")


def find_risks(study: StudyFrames) -> tuple[Risk, ...]:
    """Return every risk of a study: the most severe first, then by the position of its check."""
    found = [risk for check in _in_order() for risk in check.find(study)]

    def weight(risk: Risk) -> tuple[int, bool, bool]:
        return _SEVERITIES.index(risk.severity), not risk.is_blocking, not risk.is_about_best

    return tuple(sorted(found, key=weight))


def describe_checks() -> str:
    """Return everything that `find_risks` looks for, in words."""
    return "; ".join(check.looks_for for check in _in_order())


def _in_order() -> list[Check]:
    checks: list[Check] = [RISKS.get(name)() for name in RISKS.names()]
    return sorted(checks, key=lambda check: check.position)
