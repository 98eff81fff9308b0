"""A study with a target times its models after the sweep."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl
import pytest

from cleanai_ray.executors import timed_alone
from cleanai_ray.storage import schemas
from tests.executors.test_latency_profile import analysed, study
from tests.small_study import run

SWEEP = {"methods": ["magnitude"], "ratios": [0.5], "modes": ["local"], "steps": [1]}


def given(**evaluation: Any) -> Any:
    found = study(**evaluation)
    without_training = {"epochs": 0}
    return type(found).model_validate(
        {**found.model_dump(), "sweep": SWEEP, "finetune": without_training, "repair": {"compensation": "none"}}
    )


def table(folder: Path, name: str) -> pl.DataFrame:
    return pl.read_parquet(folder / name)


def test_models_are_timed_once_alone_in_the_target_and_beside_what_was_predicted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    timing = {"warmup": 1, "runs": 5, "batch_sizes": [1]}
    asked = given(target={"backend": "torch", "batch_size": 2}, latency=timing)
    profile = analysed(asked, tmp_path)
    failed, said = run(asked, tmp_path)
    assert failed == 0, said
    row = table(tmp_path, schemas.RESULTS_FILE).row(0, named=True)
    assert row["latency_target"] == "torch float32, batch 2, 1 thread"
    assert row["latency_exclusive"] is True
    assert row["speedup_target"] == pytest.approx(row["latency_ms_target_dense"] / row["latency_ms_target"])
    assert row["speedup_target_low"] <= row["speedup_target"] <= row["speedup_target_high"]
    assert row["speedup_b1"] == pytest.approx(row["latency_ms_b1_p50_dense"] / row["latency_ms_b1_p50"])
    assert 0 < row["latency_predicted_ms"] <= profile["milliseconds_dense"][0]
    assert row["speedup_predicted"] == pytest.approx(profile["milliseconds_dense"][0] / row["latency_predicted_ms"])
    rows = table(tmp_path, schemas.LATENCY_FILE)
    assert rows.select("variant", "backend", "batch_size").rows() == [
        ("dense", "torch", 2),
        ("pruned", "torch", 2),
        ("dense", "eager", 1),
        ("pruned", "eager", 1),
    ]
    assert rows["exclusive"].all()
    assert set(rows["trial_id"]) == {row["trial_id"]}
    monkeypatch.setattr(timed_alone, "time_alone", None)  # it must not be asked for again
    assert run(asked, tmp_path)[0] == 0
    assert table(tmp_path, schemas.LATENCY_FILE).equals(rows)


def test_the_model_that_is_timed_has_the_widths_of_the_trial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    def noting(device: str, study_json: str, removed: Any, quantization: str) -> list[Any]:
        seen.append((dict(removed), quantization))
        return []

    monkeypatch.setattr(timed_alone, "time_alone", noting)
    assert run(given(), tmp_path)[0] == 0
    assert seen == [({"conv1": 2, "conv2": 4}, "none")]  # half of 6 and 8, in multiples of 2: 4 and 4 are left
    assert table(tmp_path, schemas.RESULTS_FILE)["latency_target"].null_count() == 1


def test_a_model_that_cannot_be_timed_is_a_warning_of_its_trial(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cleanai_ray.errors import EvaluationError

    def failing(*_: Any) -> list[Any]:
        raise EvaluationError("the engine is on strike")

    monkeypatch.setattr(timed_alone, "time_alone", failing)
    failed, said = run(given(), tmp_path)
    assert failed == 0
    assert "could not be timed: the engine is on strike" in said
    row = table(tmp_path, schemas.RESULTS_FILE).row(0, named=True)
    assert "it could not be timed: the engine is on strike" in row["warnings"]
    assert row["status"] == "ok"
