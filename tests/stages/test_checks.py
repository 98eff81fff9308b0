"""What is checked before a study starts."""

from __future__ import annotations

import pytest
import small_study as small

from cleanai_ray.config.study import parse_study
from cleanai_ray.errors import PruningError
from cleanai_ray.stages.planning import check_study, describe_plan
from cleanai_ray.storage.run_directory import RunDirectory


def test_blocks_may_be_removed_for_budgets_of_every_kind(tmp_path) -> None:
    sweep = {"methods": ["magnitude"], "budgets": [{"macs": 0.5}, {"latency": 0.6}]}
    for blocks, words in (("auto", "for each budget, those that pay"), ({"count": 1}, "the cheapest 1")):
        asked = parse_study({**small.SMALL, "sweep": sweep, "pruning": {"remove_blocks": blocks}})
        planned = describe_plan(asked, check_study(asked), RunDirectory(tmp_path))
        assert f"residual blocks to remove: {words}" in planned.summary
    with pytest.raises(PruningError, match=r"^pruning\.remove_blocks\.names names 'layer9'"):
        check_study(parse_study({**small.SMALL, "pruning": {"remove_blocks": {"names": ["layer9"]}}}))
