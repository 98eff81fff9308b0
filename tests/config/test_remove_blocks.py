"""`pruning.remove_blocks` of a study file."""

from __future__ import annotations

from typing import Any

import pytest

from cleanai_ray.config.study import Study, parse_study
from cleanai_ray.errors import StudyError
from cleanai_ray.stages.fingerprints import blocks_key, calibration_key, moments_key, trial_key
from cleanai_ray.stages.prune import Prune


def study(remove_blocks: Any = None, **pruning: Any) -> Study:
    return parse_study(
        {
            "model": {"name": "resnet20", "num_classes": 10, "input_shape": [1, 8, 8], "train": {"epochs": 1}},
            "data": {"name": "digits"},
            "sweep": {"methods": ["wanda"], "ratios": [0.3]},
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
        ({"count": 0}, "count"),
        ({"number": 1}, "number"),
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
