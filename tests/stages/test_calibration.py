"""What the calibration of a study collects, and that it costs a second pass only where a metric needs one."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from cleanai_ray import calibrate
from cleanai_ray.config.study import Study, parse_study
from cleanai_ray.models import build_model
from cleanai_ray.registry import METRICS
from cleanai_ray.stages.calibration import CalibrationNeeds, calibrate_locally
from cleanai_ray.stages.tables import coverage_rows
from cleanai_ray.stages.workspace import open_workspace
from cleanai_ray.storage.schemas import coverage_schema, to_table


def study(
    *methods: str, metrics: tuple[str, ...] = ("frequency",), observe: str = "activation", **options: Any
) -> Study:
    calibration = {"samples": 24, "shard_size": 10, "top_k": 3, "sections": 5, "observe": observe}
    return parse_study(
        {
            "model": {"name": "resnet20", "num_classes": 10, "input_shape": [1, 8, 8], "train": {"epochs": 1}},
            "data": {"name": "digits", "calibration": calibration},
            "sweep": {"methods": methods, "coverage_metrics": metrics, "ratios": [0.3], "method_options": options},
        }
    )


@pytest.mark.parametrize(
    ("planned", "collected"),
    [
        (study("coverage", "wanda"), {}),
        (study("coverage", metrics=("frequency", "entropy")), {"sections": 5}),
        (study("magnitude", metrics=("entropy",)), {}),
        (study("hybrid", metrics=("entropy",)), {}),
        (study("hybrid", metrics=("entropy",), hybrid={"first": "adaptive"}), {"sections": 5}),
        (study("taylor", "random"), {"gradients": True}),
        (study("hybrid", "taylor", hybrid={"first": "hessian"}), {"gradients": True, "squared_gradients": True}),
        (study("wanda", wanda={"variant": "producer"}), {"outputs": True}),
        (study("hybrid", hybrid={"first_options": {"variant": "producer"}}), {"outputs": True}),
        (study("coverage", observe="output"), {"outputs": True}),
    ],
)
def test_a_study_collects_what_its_methods_and_metrics_read(planned: Study, collected: dict[str, Any]) -> None:
    nothing = {"outputs": False, "gradients": False, "squared_gradients": False, "sections": None}
    assert CalibrationNeeds.of(planned) == CalibrationNeeds(**{**nothing, **collected})


def test_a_trial_that_measures_anew_collects_what_it_reads_itself() -> None:
    planned = study("adaptive", "taylor", metrics=("frequency", "k_multisection"))
    needs = {trial.label: CalibrationNeeds.of(planned, trial) for trial in planned.trials()}
    assert [need.sections for need in needs.values()] == [None, 5, None]
    assert [need.gradients for need in needs.values()] == [False, False, True]


def test_shards_in_two_passes_give_what_the_whole_gives() -> None:
    planned = study("coverage", metrics=("entropy",))
    workspace = open_workspace(planned.model_dump_json(), "cpu")
    model = build_model(planned.model)
    found = calibrate_locally(workspace, model)
    shards = [list(workspace.batches("calibration", positions=positions)) for positions in workspace.shards()]
    assert [len(images) for shard in shards for images, _ in shard] == [10, 10, 4]
    whole = calibrate(model, [batch for shard in shards for batch in shard], top_k=3, sections=5)
    for layer, value in whole.inputs.items():
        merged = found.inputs[layer]
        assert value.histogram is not None
        assert merged.histogram is not None
        assert torch.equal(merged.histogram.counts, value.histogram.counts)
        assert torch.equal(merged.top_samples, value.top_samples)
    rows = to_table(coverage_rows(found), coverage_schema(METRICS.names())).to_pylist()
    expected = METRICS.get("entropy")(whole.inputs["conv1"]).tolist()
    assert [row["entropy"] for row in rows if row["layer"] == "conv1"] == pytest.approx(expected)


def test_metrics_that_were_not_counted_are_null_in_the_coverage_table() -> None:
    planned = study("coverage")
    workspace = open_workspace(planned.model_dump_json(), "cpu")
    statistics = calibrate_locally(workspace, build_model(planned.model))
    rows = to_table(coverage_rows(statistics), coverage_schema(METRICS.names())).to_pylist()
    assert {(row["entropy"], row["k_multisection"]) for row in rows} == {(None, None)}
    assert all(row["top_k"] is not None and row["frequency"] is not None for row in rows)
