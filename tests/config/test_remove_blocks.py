"""`pruning.remove_blocks` of a study file."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from cleanai_ray.config.blocks import in_words
from cleanai_ray.config.study import Study, parse_study
from cleanai_ray.errors import StudyError
from cleanai_ray.stages.fingerprints import block_choice_key, blocks_key, calibration_key, moments_key, trial_key
from cleanai_ray.stages.prune import Prune

RATIOS, BUDGETS = {"ratios": [0.3]}, {"budgets": [{"macs": 0.5}, {"params": 0.5}]}


def study(
    remove_blocks: Any = None, amounts: Any = RATIOS, methods: tuple[str, ...] = ("wanda",), **pruning: Any
) -> Study:
    return parse_study(
        {
            "model": {"name": "resnet20", "num_classes": 10, "input_shape": [1, 8, 8], "train": {"epochs": 1}},
            "data": {"name": "digits"},
            "sweep": {"methods": list(methods), **amounts},
            "pruning": {"remove_blocks": remove_blocks, **pruning},
        }
    )


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"names": ["layer1.1", "layer2.1"]}, "layer1.1, layer2.1"),
        ({"count": 2}, "the cheapest 2"),
        ({"macs": 0.2}, "the cheapest that save 20% of the MACs"),
    ],
)
def test_one_of_three_keys(given: dict, words: str) -> None:
    assert str(study(given).pruning.remove_blocks) == words


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "gives nothing; allowed: exactly one of names, macs, count"),
        ({"macs": 0.2, "count": 1}, "gives macs and count; allowed: exactly one"),
        ({"names": ["layer1.1", "layer1.1"]}, "holds 'layer1.1' twice"),
        ({"names": []}, "names"),
        ({"macs": 1.0}, "macs"),
        ({"count": 0}, r"pruning\.remove_blocks\.count is 0; allowed: null or an integer of at least 1"),
        ({"number": 1}, r"unknown key 'pruning\.remove_blocks\.number'; allowed: names, macs, count"),
        ("all", r"remove_blocks is 'all'; allowed: null or a mapping with keys among names, macs, count or 'auto'"),
        ("auto", r"remove_blocks is 'auto', and sweep\.ratios holds 0\.3; allowed: budgets alone"),
    ],
)
def test_anything_else_is_refused(given: dict, message: str) -> None:
    with pytest.raises(StudyError, match=message):
        study(given)


def test_everything_that_is_measured_without_blocks_depends_on_them() -> None:
    trial = study().trials()[0]
    for key in (blocks_key, calibration_key, moments_key):
        found = {key(study(given), "dense") for given in (None, {"count": 1}, {"count": 2}, {"macs": 0.2})}
        assert len(found) == 4
    assert len({trial_key(study(given), trial, "dense") for given in (None, {"count": 1}, {"count": 2})}) == 3
    assert Prune.key(study({"count": 1}), trial) != Prune.key(study(), trial)
    assert study({"count": 1}).trials() == study().trials()


def test_without_blocks_keys_are_those_of_before() -> None:
    described = study().pruning.described()
    assert set(described) == {"layer_ratios", "ignored_layers", "max_ratio", "round_to", "min_channels"}


def test_auto_chooses_for_each_budget_by_reconstruction_if_that_is_swept() -> None:
    asked = study("auto", BUDGETS, ("wanda", "reconstruction"))
    assert in_words(asked.pruning.remove_blocks) == "for each budget, those that pay"
    assert parse_study(yaml.safe_load(asked.to_yaml())) == asked
    macs, params = asked.sweep.budgets
    assert asked.choosing_trial(params).method == "reconstruction"
    assert asked.choosing_trial(params).budget == params
    alone = study("auto", BUDGETS)
    assert alone.choosing_trial(macs).method == "wanda"
    trial = alone.choosing_trial(macs)
    # The other method chooses other blocks for the same trial.
    assert trial_key(asked, trial, "dense") != trial_key(alone, trial, "dense")
    choices = {block_choice_key(each, "dense", budget) for each in (asked, alone) for budget in (macs, params)}
    assert len(choices) == 4
    assert block_choice_key(alone, "dense", macs) == block_choice_key(
        study("auto", {"budgets": [{"macs": 0.5}]}), "dense", macs
    )


def test_prices_hold_times_only_for_a_budget_of_latency() -> None:
    one, timed = {"budgets": [{"macs": 0.5}]}, {"budgets": [{"macs": 0.5}, {"latency": 0.6}]}
    several, fewer, with_times = (blocks_key(study("auto", budgets), "dense") for budgets in (BUDGETS, one, timed))
    assert several == fewer != with_times
