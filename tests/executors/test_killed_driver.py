"""The driver is killed in every phase of a study, or interrupted; the same command goes on, and the tables are those of
a quiet run."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import ray
import small_study as small
import torch
import yaml
from executors import plugin_held as held

from cleanai_ray.config.study import parse_study
from cleanai_ray.storage import schemas

pytestmark = [pytest.mark.ray, pytest.mark.slow]

EPOCHS = 4
PLUGIN = "executors.plugin_held"
STUDY: dict[str, Any] = {
    **small.SMALL,
    "name": "killed",
    "plugins": [PLUGIN],
    "data": {"name": "digits", "calibration": {"samples": 320, "shard_size": 8}},
    "sweep": {"methods": ["coverage", "random"], "ratios": [0.3], "modes": ["local"]},
    "finetune": {"epochs": EPOCHS, "save_every_n_epochs": 1, "early_stopping": None},
    "evaluation": {"samples": 100, "latency": None},
    "resources": {"max_concurrent_trials": 1, "calibration_actors": 1},
}


class Study:
    """A study on disk, and the command that runs it.

    Attributes:
        cluster: Address of a Ray that outlives the command; if "", the command starts one, which ends with it.
    """

    def __init__(self, folder: Path) -> None:
        self.cluster = ""
        self.run = folder / "run"
        self._moment = folder / "moment.txt"
        self._file = folder / "study.yaml"
        self._file.parent.mkdir(parents=True, exist_ok=True)
        options = {"run": str(self.run), "moment": str(self._moment)}
        model = {"factory": f"{PLUGIN}:held", "num_classes": 10, "input_shape": [1, 8, 8], "options": options}
        self.settings = {**STUDY, "model": {**model, "train": {"epochs": 2}}}
        self._file.write_text(yaml.safe_dump(self.settings))

    def start(self) -> subprocess.Popen[str]:
        words = [sys.executable, "-m", "cleanai_ray", "run", str(self._file), "--out", str(self.run)]
        # Where the tests run in the background, SIGINT is ignored, here and in every process that is started.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        environment = {**os.environ, "RAY_ADDRESS": self.cluster}
        return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)

    def finish(self) -> str:
        process = self.start()
        said, _ = process.communicate(timeout=400)
        assert process.returncode == 0, said
        return said

    def kill_at(self, moment: str, stage: str, number: int = signal.SIGKILL) -> tuple[int, str]:
        """Do `kill_when` a stage is held at a moment (`plugin_held`)."""
        (self.run / "status.json").unlink(missing_ok=True)  # it tells of a driver that was killed
        self._moment.write_text(moment)
        ended = self.kill_when(lambda: self.stage() == stage and held.MOMENTS[moment](self.run), number)
        self._moment.unlink()
        return ended

    def kill_when(self, is_there: Callable[[], bool], number: int = signal.SIGKILL) -> tuple[int, str]:
        """Send a signal as soon as something is there; return the exit code and what was said."""
        process = self.start()
        while not is_there():
            if process.poll() is not None:
                assert process.stdout is not None
                pytest.fail(f"the study ended first: {process.stdout.read()}")
            time.sleep(0.02)
        process.send_signal(number)
        said, _ = process.communicate()
        return process.returncode, said

    def names(self, pattern: str) -> set[str]:
        return {str(path.relative_to(self.run)) for path in held.whole(self.run, pattern)}

    def written(self, pattern: str) -> dict[str, int]:
        return {str(path.relative_to(self.run)): path.stat().st_mtime_ns for path in held.whole(self.run, pattern)}

    def stage(self) -> str:
        try:
            return json.loads((self.run / "status.json").read_text()).get("stage", "")
        except (OSError, json.JSONDecodeError):
            return ""


def test_a_study_whose_driver_is_killed_in_every_phase_ends_like_a_quiet_one(ray_session, tmp_path: Path) -> None:
    quiet, disturbed = Study(tmp_path / "quiet"), Study(tmp_path / "disturbed")
    assert small.run(parse_study(quiet.settings), quiet.run)[0] == 0

    disturbed.kill_at("calibration", "calibration")
    dense = disturbed.written("cache/dense*")
    kept = disturbed.names("cache/shards/calibrate/*.done")
    assert 0 < len(kept) < 40, "in the middle of the calibration"

    disturbed.cluster = ray.get_runtime_context().gcs_address
    disturbed.kill_at("training", "trials")
    assert disturbed.written("cache/dense*") == dense
    calibration, trials = disturbed.written("cache/calibration*"), disturbed.written("trials/*")
    assert len(disturbed.names("trials/*.done")) == 1, "in the middle of the sweep"
    (checkpoint,) = held.unfinished(disturbed.run)
    trained = torch.load(disturbed.run / checkpoint, weights_only=True)["progress"]["history"]
    assert 1 <= len(trained) < EPOCHS, "in the middle of the fine-tuning"

    code, said = disturbed.kill_at("training", "trials", signal.SIGINT)
    assert code == 130
    assert said.splitlines()[-1].startswith("cleanai: interrupted")
    assert json.loads((disturbed.run / "status.json").read_text())["error"].startswith("interrupted")

    disturbed.kill_when(lambda: disturbed.stage() == "report")
    assert disturbed.finish().startswith(f"Ray at {disturbed.cluster}: 1 node")
    assert disturbed.written("cache/dense*") == dense
    assert disturbed.written("cache/calibration*") == calibration
    assert trials.items() <= disturbed.written("trials/*").items()
    assert not disturbed.names("cache/checkpoints/*")
    assert not disturbed.names("cache/shards/*")

    # An epoch that a checkpoint holds is not trained again: even its pace is the old one.
    history = pq.read_table(disturbed.run / schemas.HISTORY_FILE).to_pylist()
    name = Path(checkpoint).name
    paces = {row["epoch"]: row["images_per_second"] for row in history if name.startswith(row["trial_id"])}
    assert [paces[row["epoch"]] for row in trained] == [row["images_per_second"] for row in trained]

    for name in small.TABLES:
        assert small.timeless_table(disturbed.run, name) == small.timeless_table(quiet.run, name), name
    assert {row["status"] for row in small.timeless_table(disturbed.run)} == {"ok"}
