"""A whole study whose run directory lies on an S3-compatible server, by the commands that a user types."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import small_study as small
import yaml
from object_store import ObjectStore
from safetensors.numpy import load_file

from cleanai_ray.storage import schemas
from cleanai_ray.storage.locking import locked
from cleanai_ray.storage.run_directory import RunDirectory

pytestmark = [pytest.mark.ray, pytest.mark.slow]

SETTINGS = {
    **small.SMALL,
    "sweep": {"methods": ["magnitude"], "ratios": [0.3]},
    "evaluation": {"samples": 100, "latency": None},
}


def cleanai(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "cleanai_ray", *words]
    environment = {**os.environ, "COLUMNS": "200"}
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, env=environment)


def test_a_study_runs_resumes_and_is_asked_about_on_an_object_store(store: ObjectStore, tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(SETTINGS))
    url = store.url("studies/small")
    run = RunDirectory(url)
    first = cleanai(tmp_path, "run", "study.yaml", "--out", url)
    assert first.returncode == 0, first.stdout + first.stderr
    (row,) = run.read_table(schemas.RESULTS_FILE).to_pylist()
    assert row["status"] == schemas.OK
    assert row["epochs_run"] == 1
    assert {"models", "charts", "report.pdf", "report.html", "study.yaml"} <= set(run.list(""))
    assert run.list("models") == [row["trial_id"]]
    assert not run.exists("lock.json")
    record = run.read_bytes(f"trials/{row['trial_id']}.json")

    again = cleanai(tmp_path, "run", "study.yaml", "--out", url)
    assert again.returncode == 0, again.stdout + again.stderr
    assert "1 of 1 trials were complete already" in again.stdout
    assert run.read_bytes(f"trials/{row['trial_id']}.json") == record

    status = cleanai(tmp_path, "status", url)
    assert status.returncode == 0, status.stderr
    assert "finished" in status.stdout
    exported = cleanai(
        tmp_path, "export", url, "--trial", row["trial_id"], "--format", "state_dict", "--out", "a.safetensors"
    )
    assert exported.returncode == 0, exported.stdout + exported.stderr
    (width,) = {len(value) for name, value in load_file(tmp_path / "a.safetensors").items() if name == "conv1.weight"}
    assert 0 < width <= 16


def test_a_run_directory_that_another_driver_holds_is_refused_before_ray_starts(
    store: ObjectStore, tmp_path: Path
) -> None:
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(SETTINGS))
    url = store.url("studies/held")
    with locked(RunDirectory(url)):
        refused = cleanai(tmp_path, "run", "study.yaml", "--out", url)
    assert refused.returncode == 2
    assert refused.stderr.count("\n") == 1
    assert f"in use by process {os.getpid()} on" in refused.stderr
