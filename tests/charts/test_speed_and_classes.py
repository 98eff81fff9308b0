"""Charts of accuracy against measured speed, and of what happens to single classes."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from report import synthetic
from report.tables import frame, study_of

from cleanai_ray.analysis.frames import StudyFrames
from cleanai_ray.charts import style
from cleanai_ray.charts.accuracy_latency import MOST_INTERVALS, fastest_front
from cleanai_ray.charts.class_change import MOST_CLASSES
from cleanai_ray.registry import CHARTS
from cleanai_ray.storage import schemas


def data_of(chart: Any, *fields: str) -> list[dict[str, Any]]:
    """The rows of the first data set of a chart that has all of some fields."""
    sets = chart.to_dict()["datasets"].values()
    return next(rows for rows in sets if rows and set(fields) <= set(rows[0]))


def timed(tables: synthetic.Tables) -> synthetic.Tables:
    """Add what is timed round by round."""
    for row in tables.results:
        ratio = row["latency_ms_b1_p50_dense"] / row["latency_ms_b1_p50"]
        row |= {"speedup_b1": 1.1 * ratio, "speedup_b1_low": ratio, "speedup_b1_high": 1.3 * ratio}
        row |= {"accuracy_low": row["accuracy"] - 0.005, "accuracy_high": row["accuracy"] + 0.004}
    return tables


def test_the_front_is_what_no_trial_beats_in_speed_and_accuracy() -> None:
    draw = random.Random(0)
    rows = [(draw.randint(1, 9) / 4, draw.randint(1, 9) / 10) for _ in range(60)]
    beaten = [any(s >= speed and a >= acc and (s, a) != (speed, acc) for s, a in rows) for speed, acc in rows]
    expected = sorted({row for row, is_beaten in zip(rows, beaten, strict=True) if not is_beaten}, reverse=True)
    assert fastest_front(pl.DataFrame(rows, schema=["speedup", "accuracy"], orient="row")).rows() == expected


def test_the_speed_that_was_measured_round_by_round_goes_before_the_ratio_of_medians(tmp_path: Path) -> None:
    tables = timed(synthetic.make(methods=("wanda",)))
    tables.results[0]["speedup_b1"] = None
    found = StudyFrames.load(tables.write(tmp_path)).ok
    ratio = found["latency_ms_b1_p50_dense"] / found["latency_ms_b1_p50"]
    assert found["speedup"][0] == pytest.approx(ratio[0])
    assert found["speedup"][1:].to_list() == pytest.approx((1.1 * ratio[1:]).to_list())


def test_every_trial_has_its_intervals_as_long_as_they_can_be_told_apart(tmp_path: Path) -> None:
    study = StudyFrames.load(timed(synthetic.make(methods=("wanda", "random"))).write(tmp_path))
    chart = CHARTS.get("accuracy_latency")(study)
    drawn = data_of(chart, "slowest", "fastest")
    assert sorted(row["slowest"] for row in drawn) == pytest.approx(sorted(study.ok["speedup_b1_low"]))
    assert sorted(row["fastest"] for row in drawn) == pytest.approx(sorted(study.ok["speedup_b1_high"]))
    assert "95 % intervals" in style.to_svg(chart)


def test_of_many_trials_only_the_front_has_intervals(tmp_path: Path) -> None:
    tables = timed(synthetic.make(methods=("coverage", "wanda", "random"), seeds=tuple(range(6))))
    assert len(tables.results) > MOST_INTERVALS
    study = StudyFrames.load(tables.write(tmp_path))
    chart = CHARTS.get("accuracy_latency")(study)
    assert len(data_of(chart, "slowest", "fastest", "label")) == len(fastest_front(study.ok))
    assert "of the trials on the line" in style.to_svg(chart)


def test_without_latency_there_is_no_chart_of_speed(tmp_path: Path) -> None:
    study = StudyFrames.load(synthetic.make(methods=("wanda",), timed=False).write(tmp_path))
    assert CHARTS.get("accuracy_latency")(study) is None


def study_with_classes(changes: dict[str, list[float]], dense: float = 0.9) -> StudyFrames:
    """Two seeds of every method in one cell, magnitude the best; `changes` of each seed, a number a class."""
    rows = [
        {"trial_id": trial, "label": number, "num_evaluated": 100, "accuracy_dense": dense}
        | {"accuracy": dense + change, "change": change}
        for trial, values in changes.items()
        for number, change in enumerate(values)
    ]
    skill = {"magnitude": 92.0, "wanda": 91.0}
    classes = frame(rows, schemas.CLASSES)
    return study_of(
        lambda label, _ratio, _mode, _steps, seed: skill[label] - 0.1 * seed,
        labels=tuple(skill),
        ratios=(0.5,),
        modes=("local",),
        seeds=(0, 1),
        classes=classes,
    )


def test_classes_of_the_best_trial_come_worst_first_beside_the_mean_of_the_others() -> None:
    study = study_with_classes(
        {
            "magnitude--local-0.5-1-0": [0.01, -0.20, -0.05],
            "magnitude--local-0.5-1-1": [0.5, 0.5, 0.5],
            "wanda--local-0.5-1-0": [-0.10, 0.0, -0.02],
            "wanda--local-0.5-1-1": [-0.30, 0.0, -0.04],
        }
    )
    chart = CHARTS.get("class_change")(study)
    bars = data_of(chart, "name", "change", "num_evaluated")
    assert [(row["name"], row["change"]) for row in bars] == [("class 1", -0.2), ("class 2", -0.05), ("class 0", 0.01)]
    ticks = {(row["name"], row["method"]): row["change"] for row in data_of(chart, "method", "change")}
    assert ticks == pytest.approx({("class 0", "wanda"): -0.2, ("class 1", "wanda"): 0.0, ("class 2", "wanda"): -0.03})
    svg = style.to_svg(chart)
    # 90 % less 20 points; the mean over the classes is -24 / 3 points.
    assert "90.0 \N{RIGHTWARDS ARROW} 70.0 %, 100 images" in svg
    assert "\N{MINUS SIGN}8.00 points" in svg


def test_of_many_classes_the_worst_are_drawn() -> None:
    changes = [(-1) ** number * number / 100 for number in range(40)]
    chart = CHARTS.get("class_change")(study_with_classes({"magnitude--local-0.5-1-0": changes}))
    bars = data_of(chart, "name", "change", "num_evaluated")
    assert [row["change"] for row in bars] == sorted(changes)[:MOST_CLASSES]
    svg = style.to_svg(chart)
    assert "25 of 40 classes" in svg
    assert float(svg.split('width="')[1].split('"')[0]) <= style.WIDTH + 5


def test_without_classes_there_is_no_chart_of_them() -> None:
    assert CHARTS.get("class_change")(study_with_classes({"wanda--local-0.5-1-0": [0.1]})) is None
