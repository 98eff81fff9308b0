"""Adding a method is adding one file: it is found, validated, tested and drawn without a change anywhere else."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from conformance_cases import calibrated_cases, method_cases, prune_dead, survivors
from small_nets import batches, build, example

import cleanai_ray.importance
from cleanai_ray import api
from cleanai_ray.charts.style import METHOD_COLOURS, label_colours, method_colours
from cleanai_ray.config.study import parse_study
from cleanai_ray.errors import StudyError
from cleanai_ray.registry import METHODS

SOURCE = '''
from torch import Tensor

from cleanai_ray.importance.base import ImportanceMethod, ScoringContext, average_over_layers, readers, statistics_of
from cleanai_ray.graph.graph import ChannelGroup, Member
from cleanai_ray.registry import METHODS


@METHODS.register("loudest")
class Loudest(ImportanceMethod):
    """Largest activation of a channel. And a second sentence."""

    needs_activations = True

    def score(self, group: ChannelGroup, context: ScoringContext) -> Tensor:
        def values(member: Member) -> Tensor:
            return statistics_of(context, member, "inputs").maximum

        return average_over_layers(group, readers(group), values, reduce="mean")
'''


def document(method: str) -> dict:
    return {
        "model": {"name": "resnet20", "input_shape": [1, 8, 8], "train": {"epochs": 1}},
        "data": {"name": "digits"},
        "sweep": {"methods": [method], "ratios": [0.3]},
    }


@pytest.fixture
def loudest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A file `loudest.py` beside those of the package; nobody imports it."""
    METHODS.names()
    for attribute in ("_values", "_summaries", "_loaded"):
        monkeypatch.setattr(METHODS, attribute, getattr(METHODS, attribute).copy())
    (tmp_path / "loudest.py").write_text(SOURCE)
    monkeypatch.setattr(cleanai_ray.importance, "__path__", [*cleanai_ray.importance.__path__, str(tmp_path)])
    yield
    sys.modules.pop("cleanai_ray.importance.loudest", None)
    if hasattr(cleanai_ray.importance, "loudest"):
        delattr(cleanai_ray.importance, "loudest")


@pytest.mark.usefixtures("loudest")
def test_the_registry_finds_it() -> None:
    assert "loudest" in METHODS.names()
    assert METHODS.summaries()["loudest"] == "Largest activation of a channel. And a second sentence"


@pytest.mark.usefixtures("loudest")
def test_studies_may_name_it() -> None:
    (trial,) = parse_study(document("loudest")).trials()
    assert trial.trial_id.startswith("loudest-local-r0.3-")
    with pytest.raises(StudyError, match=r"allowed: .*loudest"):
        parse_study(document("unknown"))


@pytest.mark.usefixtures("loudest")
def test_the_conformance_suite_takes_it_in_and_it_passes() -> None:
    assert ("loudest", None) in method_cases()
    assert ("loudest", None) in calibrated_cases()
    for mode in ("local", "global"):
        assert survivors(prune_dead("residual", ("loudest", None), mode), "residual") == []


@pytest.mark.usefixtures("loudest")
def test_it_prunes() -> None:
    model = build("plain")
    result = api.prune(model, example(), batches(), method="loudest", ratio=0.5)
    assert result.model.conv1.out_channels == 3
    assert result.model(torch.zeros(1, 2, 8, 8)).shape == (1, 3)


@pytest.mark.usefixtures("loudest")
def test_charts_give_it_a_colour_of_its_own() -> None:
    colours = method_colours(METHODS.names())
    assert colours["loudest"] not in METHOD_COLOURS.values()
    assert colours["coverage"] == METHOD_COLOURS["coverage"]
    assert label_colours(["loudest"])["loudest"] == colours["loudest"]


def test_without_the_file_there_is_no_such_method() -> None:
    assert "loudest" not in METHODS.names()
    with pytest.raises(StudyError, match="'loudest' is not a method"):
        parse_study(document("loudest"))
