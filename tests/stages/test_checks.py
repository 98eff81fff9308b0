"""What is checked before a study starts."""

from __future__ import annotations

import re

import pytest
import small_study as small

from cleanai_ray.config.study import parse_study
from cleanai_ray.errors import PruningError
from cleanai_ray.stages.planning import check_study, describe_plan
from cleanai_ray.storage.run_directory import RunDirectory


def test_a_plan_counts_the_samples_that_the_study_makes_use_of(tmp_path) -> None:
    """Where nothing is trained, none are for training; of those that are scored, about half choose the trial."""
    untrained = {**small.SMALL["model"], "train": None}
    lines = []
    for changes in (
        {},
        {"model": untrained, "finetune": {"epochs": 0}},
        {"finetune": {"epochs": 0}, "evaluation": {"samples": 100, "validation_share": 0}},
    ):
        asked = parse_study({**small.SMALL, **changes})
        planned = describe_plan(asked, check_study(asked), RunDirectory(tmp_path))
        lines += [line for line in planned.summary if line.startswith("samples: ")]
    trained = r"samples: 200 calibration \(withheld from training\), \d+ training, \d+ validation, 100 evaluation"
    assert re.fullmatch(trained + r" \((\d+) choose the trial, (\d+) report on it\)", lines[0])
    found = re.fullmatch(r"samples: 200 calibration, 100 evaluation \((\d+) choose.*, (\d+) report on it\)", lines[1])
    assert found is not None
    assert sum(map(int, found.groups())) == 100
    assert 35 <= int(found[1]) <= 65
    assert re.fullmatch(trained, lines[2])


def test_blocks_may_be_removed_for_budgets_of_every_kind(tmp_path) -> None:
    sweep = {"methods": ["magnitude"], "budgets": [{"macs": 0.5}, {"latency": 0.6}]}
    for blocks, words in (("auto", "for each budget, those that pay"), ({"count": 1}, "the cheapest 1")):
        asked = parse_study({**small.SMALL, "sweep": sweep, "pruning": {"remove_blocks": blocks}})
        planned = describe_plan(asked, check_study(asked), RunDirectory(tmp_path))
        assert f"residual blocks to remove: {words}" in planned.summary
    with pytest.raises(PruningError, match=r"^pruning\.remove_blocks\.names names 'layer9'"):
        check_study(parse_study({**small.SMALL, "pruning": {"remove_blocks": {"names": ["layer9"]}}}))
