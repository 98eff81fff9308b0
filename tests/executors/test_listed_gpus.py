"""Studies on a real Ray that lists GPUs: what waits for one, what is said of idle ones, and who shares them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml

pytestmark = [pytest.mark.ray, pytest.mark.slow]

SCRIPT = Path(__file__).parent / "listed_gpus.py"
STUDY: dict[str, Any] = {
    "name": "tiny",
    "model": {"name": "resnet20", "num_classes": 10, "input_shape": [1, 8, 8], "train": {"epochs": 1}},
    "data": {"name": "digits", "calibration": {"samples": 64}},
    "sweep": {"methods": ["random"], "ratios": [0.2, 0.3, 0.4], "modes": ["local"]},
    "repair": {"compensation": "none", "batch_norm": "none"},
    "finetune": {"epochs": 1},
    "evaluation": {"samples": 100, "latency": None},
    "output": {"save_models": "none"},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("listed")


@pytest.fixture(scope="module")
def said(folder: Path) -> dict[str, str]:
    """What each study of the script said; under "", what came before them."""
    (folder / "study.yaml").write_text(yaml.safe_dump(STUDY))
    command = [sys.executable, str(SCRIPT), str(folder / "study.yaml"), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=850, env=os.environ, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    first, *studies = done.stdout.split("== ")
    return {"": first} | {text.partition("\n")[0]: text.partition("\n")[2] for text in studies}


def test_workers_of_a_ray_of_ones_own_have_normal_priority(said: dict[str, str]) -> None:
    assert said[""].split() == ["niceness", str(os.nice(0))], "that of the study's own process"


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("held", "the cluster's 2 GPUs will be idle: resources.gpus_per_trial is 0"),
        ("auto", "the cluster lists 2 GPUs, and torch finds none there: the study computes on CPUs"),
    ],
)
def test_nothing_waits_for_a_gpu_that_the_study_does_not_use(
    said: dict[str, str], folder: Path, name: str, sentence: str
) -> None:
    # All the while another process holds every GPU.
    assert sentence in said[name]
    assert "failed 0" in said[name]
    found = pl.read_parquet(folder / name / "results.parquet")
    assert found["status"].to_list() == ["ok"]
    assert set(found["device"]) == {"cpu"}
    record = json.loads((folder / name / "environment.json").read_text())
    assert record["resources"] == {"cpus_per_trial": 1, "gpus_per_trial": 0}


def test_the_last_trial_takes_both_gpus(said: dict[str, str], folder: Path) -> None:
    assert "failed 0" in said["spread"]
    found = pl.read_parquet(folder / "spread" / "results.parquet")
    assert found["status"].to_list() == ["ok"] * 3
    # Ray Train leaves a folder for each training of several workers.
    (trained,) = (folder / "spread" / "train").iterdir()
    assert trained.name.startswith(found["trial_id"].to_list()[-1])
    record = json.loads((folder / "spread" / "environment.json").read_text())
    assert record["resources"]["gpus_per_trial"] == 1
