"""Charts are valid, render offline, keep their colours, and show what the tables hold."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from report import synthetic

from cleanai_ray.analysis.frames import StudyFrames
from cleanai_ray.analysis.pareto import pareto_front
from cleanai_ray.charts import style
from cleanai_ray.charts.coverage_heatmap import NUM_BINS, heatmap_cells
from cleanai_ray.charts.trial_marks import shown_labels
from cleanai_ray.registry import CHARTS

NAMES = (
    "accuracy_by_method",
    "accuracy_macs",
    "coverage_heatmap",
    "dense_vs_best",
    "finetune_curves",
    "layer_channels",
)
FROM_TRIALS = tuple(name for name in NAMES if name != "coverage_heatmap")


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> StudyFrames:
    tables = synthetic.make(methods=("coverage", "wanda", "random", "brand_new"), finetune_epochs=3)
    return StudyFrames.load(tables.write(tmp_path_factory.mktemp("run")))


def load(tables: synthetic.Tables, folder: Path) -> StudyFrames:
    return StudyFrames.load(tables.write(folder))


def colours_of(node: Any) -> dict[str, str]:
    """Collect the colour of every label from the scales of a chart's specification."""
    found: dict[str, str] = {}
    if isinstance(node, dict):
        scale = node.get("scale")
        if isinstance(scale, dict) and {"domain", "range"} <= set(scale) and node.get("field") == "label":
            pairs = zip(scale["domain"], scale["range"], strict=True)
            found.update({label: colour for label, colour in pairs if str(colour).startswith("#")})
        for value in node.values():
            found.update(colours_of(value))
    elif isinstance(node, list):
        for value in node:
            found.update(colours_of(value))
    return found


def test_the_charts_of_the_specification_are_registered() -> None:
    assert set(NAMES) <= set(CHARTS.names())
    assert all(CHARTS.summaries()[name] for name in NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_renders_to_svg_with_its_title(name: str, study: StudyFrames) -> None:
    chart = CHARTS.get(name)(study)
    svg = style.to_svg(chart)
    assert svg.startswith("<svg")
    assert chart.to_dict()["title"]["text"] in svg
    assert "NaN" not in svg
    assert "undefined" not in svg


@pytest.mark.parametrize("name", FROM_TRIALS)
def test_a_study_in_which_all_failed_has_no_chart_of_trials(name: str, tmp_path: Path) -> None:
    tables = synthetic.fail(synthetic.make(methods=("wanda",), finetune_epochs=2))
    assert CHARTS.get(name)(load(tables, tmp_path)) is None


@pytest.mark.parametrize("name", NAMES)
def test_one_trial_is_enough(name: str, tmp_path: Path) -> None:
    tables = synthetic.make(methods=("wanda",), ratios=(0.3,), modes=("local",), finetune_epochs=2, timed=False)
    assert len(tables.results) == 1
    assert style.to_svg(CHARTS.get(name)(load(tables, tmp_path))).startswith("<svg")


@pytest.fixture(scope="module", params=["resnet50", "densenet121"])
def deep(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> StudyFrames:
    is_wide = request.param == "resnet50"
    tables = synthetic.make(
        methods=("coverage", "wanda", "magnitude", "random"),
        ratios=(0.1, 0.2, 0.3, 0.5) if is_wide else (0.2,),
        seeds=(0, 1) if is_wide else (0,),
        network=request.param,
        finetune_epochs=2,
    )
    return load(tables, tmp_path_factory.mktemp(request.param))


@pytest.mark.parametrize("name", NAMES)
def test_deep_networks_and_many_trials_stay_on_a_page(name: str, deep: StudyFrames) -> None:
    svg = style.to_svg(CHARTS.get(name)(deep))
    width, height = (
        float(part.split('"')[1]) for part in svg.split(">")[0].split(" ") if part.startswith(("wid", "hei"))
    )
    assert width <= style.WIDTH + 5
    assert height <= 1.5 * style.WIDTH


def test_no_chart_of_what_was_not_recorded(tmp_path: Path) -> None:
    tables = synthetic.make(methods=("wanda",))
    tables.coverage, tables.layers = [], []
    study = load(tables, tmp_path)
    assert CHARTS.get("coverage_heatmap")(study) is None
    assert CHARTS.get("layer_channels")(study) is None
    assert CHARTS.get("finetune_curves")(study) is None


def test_fine_tuning_is_drawn_where_some_trial_has_two_epochs(tmp_path: Path) -> None:
    tables = synthetic.make(methods=("wanda",), ratios=(0.3,), finetune_epochs=2)
    longest, *others = sorted({row["trial_id"] for row in tables.history})
    assert others
    tables.history = [row for row in tables.history if row["epoch"] == 1 or row["trial_id"] == longest]
    assert CHARTS.get("finetune_curves")(load(tables, tmp_path / "some")) is not None
    tables.history = [row for row in tables.history if row["epoch"] == 1]
    assert CHARTS.get("finetune_curves")(load(tables, tmp_path / "none")) is None


def test_the_epochs_after_which_a_trial_was_pruned_further_have_a_ring(tmp_path: Path) -> None:
    tables = synthetic.make(methods=("wanda",), ratios=(0.3,), modes=("local",), finetune_epochs=5)
    for row in tables.history:
        row["step"] = {1: 1, 2: 1, 3: 2, 4: 2, 5: 3}[row["epoch"]]
    chart = CHARTS.get("finetune_curves")(load(tables, tmp_path / "stepwise"))
    assert "ring: pruned further after it" in chart.to_dict()["title"]["subtitle"][0]
    (drawn,) = chart.to_dict()["datasets"].values()
    assert [row["epoch"] for row in drawn if row["is_cut"]] == [2, 4]
    for row in tables.history:
        row["step"] = 3
    plain = CHARTS.get("finetune_curves")(load(tables, tmp_path / "one_go")).to_dict()
    assert "ring" not in plain["title"]["subtitle"][0]
    assert len(plain["concat"][0]["layer"]) == len(chart.to_dict()["concat"][0]["layer"]) - 1


def test_without_labels_the_curves_are_said_to_be_of_agreement(tmp_path: Path) -> None:
    tables = synthetic.make(methods=("wanda",), ratios=(0.3,), modes=("local",), finetune_epochs=2)
    dense = {**tables.history[0], "trial_id": "dense", "step": None, "is_best": True, "validation_accuracy": 0.75}
    tables.history.append(dense)
    study = load(tables, tmp_path)
    told = []
    for data in ("training", "calibration"):
        changed = replace(study, study={**study.study, "finetune": {"data": data}})
        told.append(" ".join(CHARTS.get("finetune_curves")(changed).to_dict()["title"]["subtitle"]))
    assert "the dense model on the same validation samples, 75.0 %" in told[0]
    assert "agreement" not in told[0]
    assert all(fact in told[1] for fact in ("Without labels", "agreement with the dense model", "held back"))
    assert "validation samples" not in told[1]


def test_a_method_has_one_colour_in_every_chart(study: StudyFrames) -> None:
    expected = style.label_colours(study.labels)
    by_chart = {name: colours_of(CHARTS.get(name)(study).to_dict()) for name in ("accuracy_macs", "accuracy_by_method")}
    assert by_chart["accuracy_by_method"] == expected
    shown = shown_labels(study)
    grey = {label: style.FAINT for label in expected if label not in shown}
    assert by_chart["accuracy_macs"] == {label: expected[label] for label in shown} | grey
    curves = style.to_svg(CHARTS.get("finetune_curves")(study))
    assert all(f'stroke="{colour}"' in curves for colour in set(expected.values()))
    assert study.best is not None
    for name in ("layer_channels", "dense_vs_best"):
        assert f'fill="{expected[study.best["label"]]}"' in style.to_svg(CHARTS.get(name)(study))


def test_a_new_method_gets_a_colour_of_its_own_that_does_not_depend_on_order() -> None:
    known = style.METHOD_COLOURS
    colours = style.method_colours(["zeta", "wanda", "alpha", "coverage"])
    assert colours["wanda"] == known["wanda"]
    assert colours["alpha"] not in known.values()
    assert colours["zeta"] not in known.values()
    assert len(set(colours.values())) == 4
    assert style.method_colours(["coverage", "alpha", "wanda", "zeta"]) == colours


def test_metrics_of_a_method_share_its_colour_and_differ_in_shape() -> None:
    labels = ["coverage/apoz", "coverage/entropy", "coverage/top_k", "wanda"]
    assert len({style.label_colours(labels)[label] for label in labels[:3]}) == 1
    assert len({style.label_shapes(labels)[label] for label in labels[:3]}) == 3


def test_known_colours_are_distinct() -> None:
    assert len(set(style.METHOD_COLOURS.values())) == len(style.METHOD_COLOURS)


def test_pareto_front_is_what_no_trial_dominates() -> None:
    rows = [(5, 0.9), (3, 0.8), (4, 0.7), (6, 0.9), (3, 0.6), (1, 0.2), (5, 0.95), (1, 0.2)]
    frame = pl.DataFrame(rows, schema=["macs", "accuracy"], orient="row")
    front = {
        (macs, accuracy)
        for macs, accuracy in rows
        if not any(m <= macs and a >= accuracy and (m, a) != (macs, accuracy) for m, a in rows)
    }
    assert pareto_front(frame).rows() == sorted(front)


def test_heatmap_averages_wide_layers_and_counts_dead_channels() -> None:
    width = 2 * NUM_BINS
    frame = pl.DataFrame(
        {
            "layer": ["wide"] * width,
            "layer_index": [0] * width,
            "channel": list(range(width)),
            "minimum": [0.0] * width,
            "maximum": [0.0 if channel < 3 else 1.0 for channel in range(width)],
            "value": [0.0 if channel < 3 else 2.0 for channel in range(width)],
        }
    )
    cells = heatmap_cells(frame).sort("bin")
    assert len(cells) == NUM_BINS
    assert cells["value"].to_list()[:3] == [0.0, 0.5, 1.0]
    assert cells["dead"].to_list()[:3] == [2, 1, 0]
    assert set(cells["dead_in_layer"]) == {3}
    assert cells["end"][-1] == 1.0


def test_best_trial_is_the_most_accurate_and_of_equals_the_cheapest(tmp_path: Path) -> None:
    tables = synthetic.make(methods=("wanda", "magnitude"))
    for row in tables.results:
        row["accuracy"] = 0.5
    winner = min(tables.results, key=lambda row: row["macs"])
    study = load(tables, tmp_path)
    assert study.best is not None
    assert study.best["trial_id"] == winner["trial_id"]


def test_importing_and_drawing_loads_neither_torch_nor_ray() -> None:
    code = (
        "import sys; import cleanai_ray.charts.style, cleanai_ray.report; from cleanai_ray.registry import CHARTS; "
        "CHARTS.names(); print(sorted({'torch', 'ray', 'torch_pruning'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
