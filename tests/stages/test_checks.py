"""What is refused before a study starts."""

from __future__ import annotations

import pytest
import small_study as small

from cleanai_ray.config.study import parse_study
from cleanai_ray.errors import StudyError
from cleanai_ray.stages.planning import check_study


def test_blocks_are_not_removed_for_a_budget_of_time() -> None:
    settings = {**small.SMALL, "pruning": {"remove_blocks": {"count": 1}}}
    check_study(parse_study({**settings, "sweep": {"methods": ["magnitude"], "budgets": [{"macs": 0.5}]}}))
    timed = parse_study({**settings, "sweep": {"methods": ["magnitude"], "budgets": [{"macs": 0.5}, {"latency": 0.6}]}})
    with pytest.raises(
        StudyError, match=r"^pruning\.remove_blocks is .*, and sweep\.budgets holds .*; allowed: one of"
    ):
        check_study(timed)
