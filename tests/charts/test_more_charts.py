"""Charts of what stages give back and take, and of what methods remove alike."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from report import synthetic
from report.tables import frame, study_of

from cleanai_ray.analysis.frames import StudyFrames
from cleanai_ray.analysis.removed_channels import correlation, overlap, removed_channels
from cleanai_ray.charts import style
from cleanai_ray.charts.channel_overlap import overlap_of_methods
from cleanai_ray.registry import CHARTS
from cleanai_ray.storage import schemas

NAMES = ("channel_overlap", "recovery", "time_by_stage")


def load(tables: synthetic.Tables, folder: Path) -> StudyFrames:
    return StudyFrames.load(tables.write(folder))


@pytest.mark.parametrize("name", NAMES)
def test_many_methods_fit_on_the_page(name: str, tmp_path: Path) -> None:
    names = tuple(f"a_method_with_a_long_name_{number}" for number in range(12))
    tables = synthetic.make(methods=("coverage", "wanda", "random", *names), ratios=(0.3,), finetune_epochs=2)
    chart = CHARTS.get(name)(load(tables, tmp_path))
    svg = style.to_svg(chart)
    assert chart.to_dict()["title"]["text"] in svg
    width = float(svg.split('width="')[1].split('"')[0])
    assert width <= style.WIDTH + 5


@pytest.mark.parametrize("name", NAMES[:2])
def test_a_study_in_which_all_failed_has_none(name: str, tmp_path: Path) -> None:
    assert CHARTS.get(name)(load(synthetic.fail(synthetic.make(methods=("wanda",))), tmp_path)) is None


def test_recovery_needs_two_stages(tmp_path: Path) -> None:
    assert CHARTS.get("recovery")(load(synthetic.make(methods=("wanda",), repair=False), tmp_path)) is None


def test_agreement_by_slow_and_obvious_means() -> None:
    random = np.random.default_rng(0)
    first, second = (random.random((5, 40)) < 0.4 for _ in range(2))
    expected = [np.corrcoef(*pair)[0, 1] for pair in zip(first, second, strict=True)]
    assert correlation(first, second) == pytest.approx(expected)
    kept = [[set(np.flatnonzero(~row)) for row in matrix] for matrix in (first, second)]
    shares = [len(one & other) / len(one | other) for one, other in zip(*kept, strict=True)]
    assert overlap({"conv": first}, {"conv": second}) == pytest.approx(shares)


def test_what_was_removed_is_read_from_the_first_layer_of_a_group() -> None:
    rows = [
        {
            "trial_id": "a",
            "layer": "x",
            "layer_index": 0,
            "group": "g",
            "out_channels_dense": 4,
            "removed_channels": [1],
        },
        {
            "trial_id": "a",
            "layer": "y",
            "layer_index": 1,
            "group": "g",
            "out_channels_dense": 4,
            "removed_channels": [2],
        },
        {
            "trial_id": "b",
            "layer": "x",
            "layer_index": 0,
            "group": "g",
            "out_channels_dense": 4,
            "removed_channels": [],
        },
        {"trial_id": "b", "layer": "fc", "layer_index": 2, "group": None, "out_channels_dense": 4},
    ]
    study = study_of(lambda *_: 90.0, labels=("wanda",), layers=frame(rows, schemas.LAYERS))
    found = removed_channels(study, ["b", "a"])
    assert list(found) == ["g"]
    assert found["g"].tolist() == [[False] * 4, [False, True, False, False]]


def test_methods_are_compared_within_a_cell() -> None:
    labels = ("wanda", "magnitude", "random")
    removed = {"wanda": [0, 1], "magnitude": [0, 1], "random": [2, 3]}
    rows = [
        {
            "trial_id": f"{label}--{mode}-0.5-1-0",
            "layer": "x",
            "layer_index": 0,
            "group": "x",
            "out_channels_dense": 4,
            "removed_channels": removed[label],
        }
        for label in labels
        for mode in ("local", "global")
    ]
    study = study_of(lambda *_: 90.0, labels=labels, ratios=(0.5,), seeds=(0,), layers=frame(rows, schemas.LAYERS))
    found = overlap_of_methods(study)
    assert found is not None
    names, matrix = found
    assert names == ["magnitude", "random", "wanda"]
    assert matrix[1, 0] == pytest.approx(-1.0)
    assert matrix[2, 0] == pytest.approx(1.0)
    assert matrix[2, 1] == pytest.approx(-1.0)
