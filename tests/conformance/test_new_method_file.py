"""Adding a method or a metric is adding one file: it is found, validated, tested and drawn without any other change."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from conformance_cases import calibrated_cases, method_cases, prune_dead, survivors
from new_files import new_file
from small_nets import batches, build, example

from cleanai_ray import api
from cleanai_ray.charts.style import METHOD_COLOURS, label_colours, method_colours
from cleanai_ray.config.study import parse_study
from cleanai_ray.errors import StudyError
from cleanai_ray.registry import METHODS, METRICS

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
def loudest(tmp_path: Path) -> Iterator[None]:
    """A file `loudest.py` beside those of the package; nobody imports it."""
    with new_file(METHODS, "loudest", SOURCE, tmp_path / "importance"):
        yield


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


METRIC = """
from torch import Tensor

from cleanai_ray.registry import METRICS
from cleanai_ray.statistics.channel_statistics import LayerStatistics


@METRICS.register("peak")
def peak(statistics: LayerStatistics) -> Tensor:
    \"\"\"Largest activation of a channel.\"\"\"
    return statistics.maximum
"""


def test_a_metric_is_one_new_file(tmp_path: Path) -> None:
    model, images = build("plain"), batches()
    with new_file(METRICS, "peak", METRIC, tmp_path / "coverage"), new_file(METHODS, "loudest", SOURCE, tmp_path):
        study = document("coverage")
        study["sweep"]["coverage_metrics"] = ["peak"]
        (trial,) = parse_study(study).trials()
        assert trial.trial_id.startswith("coverage-peak-local-r0.3-")
        # The largest activation, as a metric of coverage and as a method of its own.
        found = api.prune(model, example(), images, method="coverage", coverage_metric="peak", ratio=0.5, repair=False)
        same = api.prune(model, example(), images, method="loudest", ratio=0.5, repair=False)
        assert found.plan.removed == same.plan.removed
    with pytest.raises(StudyError, match="'peak' is not a coverage metric"):
        parse_study(study)
