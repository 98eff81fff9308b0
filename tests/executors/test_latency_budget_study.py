"""A study that meets a latency budget by a profile, and one whose target likes a multiple."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from cleanai_ray.config.study import parse_study
from cleanai_ray.executors import latency_profile, multiple
from cleanai_ray.stages.fingerprints import trial_key
from cleanai_ray.stages.multiple import FILE, known_multiple
from cleanai_ray.storage import schemas
from cleanai_ray.storage.run_directory import RunDirectory
from tests import small_study as small

SMALL: dict[str, Any] = {
    **small.SMALL,
    "model": {"name": "resnet20", "num_classes": 10, "input_shape": [1, 8, 8], "train": {"epochs": 1}},
    "sweep": {"methods": ["magnitude"], "budgets": [{"latency": 0.97}]},
    "repair": {"compensation": "none", "batch_norm": "none"},
    "finetune": {"epochs": 0},
    "evaluation": {"samples": 50, "latency": {"batch_sizes": [1], "warmup": 1, "runs": 5}},
}


def with_target(**target: Any) -> Any:
    evaluation = {**SMALL["evaluation"], "target": {"backend": "torch", **target}}
    pruning = {"round_to": "auto"}
    return parse_study(
        {**SMALL, "sweep": {"methods": ["magnitude"], "ratios": [0.4]}, "pruning": pruning} | {"evaluation": evaluation}
    )


def test_a_study_measures_one_profile_for_its_latency_budgets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a target the profile is that of torch on this machine; what the clock says is not looked at."""
    study = parse_study(SMALL)
    small.run(study, tmp_path)
    profile = pq.read_table(tmp_path / schemas.PROFILE_FILE).to_pylist()
    assert {row["target"] for row in profile} == {"torch float32, batch 1, 1 thread"}
    assert {row["kind"] for row in profile} == {"group", "repeat", "uniform", "check"}
    monkeypatch.setattr(latency_profile, "profile_study", None)  # it must not be asked for again
    small.run(study, tmp_path)
    (row,) = pq.read_table(tmp_path / schemas.RESULTS_FILE).to_pylist()
    assert row["requested_budget"] == "latency=0.97"
    assert row["status"] == schemas.OK or "budget" in row["error"]


def test_the_multiple_of_a_target_is_measured_once_and_decides_the_widths(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def measured(device: str, target: str) -> int:
        asked.append(json.loads(target)["backend"])
        return 16

    monkeypatch.setattr(multiple, "measure_study_multiple", measured)
    failed, said = small.run(with_target(), tmp_path)
    assert failed == 0
    assert "widths are multiples of 16, which torch float32, batch 1, 1 thread likes here" in " ".join(said.split())
    layers = pq.read_table(tmp_path / schemas.LAYERS_FILE).to_pylist()
    kept = {row["out_channels"] for row in layers if row["out_channels_dense"] == 64}
    assert kept == {32}  # 38 of 64 are to stay; the nearest multiple of 16
    failed, said = small.run(with_target(), tmp_path)
    assert "1 of 1 trials were complete already" in said
    assert asked == ["torch"]
    assert json.loads((tmp_path / FILE).read_text()) == {"multiple": 16}
    run = RunDirectory(str(tmp_path))
    assert known_multiple(with_target(), run).multiple == 16
    assert known_multiple(with_target(batch_size=2), run).multiple is None  # of another target


def test_the_multiple_is_among_what_a_trial_depends_on() -> None:
    keys = {trial_key(study, study.trials()[0], "d") for study in (with_target(multiple=m) for m in (8, 16, 32))}
    assert len(keys) == 3
    any_width = [with_target(multiple=m).model_copy(update={"pruning": parse_study(SMALL).pruning}) for m in (8, 16)]
    any_width = [s.model_copy(update={"pruning": s.pruning.model_copy(update={"round_to": 4})}) for s in any_width]
    assert len({trial_key(study, study.trials()[0], "d") for study in any_width}) == 1
