"""The local executor: a whole study in one process, without Ray, that can be interrupted and resumed."""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import small_study as small
import yaml
from new_files import new_file
from rich.console import Console

from cleanai_ray.cli import main
from cleanai_ray.config.study import parse_study
from cleanai_ray.executors.progress import ProgressReporter
from cleanai_ray.executors.run_study import RunOptions, run_study
from cleanai_ray.registry import EXECUTORS
from cleanai_ray.stages.planning import check_study
from cleanai_ray.storage.run_directory import RunDirectory
from cleanai_ray.storage.status import read_status

WITHOUT_RAY = """
import sys
from cleanai_ray.cli import main
code = main(["run", sys.argv[1], "--out", sys.argv[2], "--executor", "local"])
print("loaded:", *sorted({name.partition(".")[0] for name in sys.modules} & {"ray", "tensorboardX"}))
sys.exit(code)
"""


@pytest.fixture
def study_file(tmp_path: Path) -> Path:
    settings = {**small.SMALL, "sweep": {"methods": ["magnitude"], "ratios": [0.3]}, "finetune": {"epochs": 0}}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump({**settings, "evaluation": {"samples": 50, "latency": None}}))
    return tmp_path / "study.yaml"


def test_a_study_runs_without_importing_ray(study_file: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", WITHOUT_RAY, str(study_file), str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 of 1 trials succeeded" in done.stdout
    assert done.stdout.splitlines()[-1] == "loaded:"
    assert (tmp_path / "run" / "report.pdf").exists()


class Interrupting(ProgressReporter):
    """Is interrupted as by Ctrl-C when a text is printed."""

    def __init__(self, text: str) -> None:
        super().__init__(Console(file=io.StringIO(), width=200))
        self._text = text

    def say(self, text: str) -> None:
        super().say(text)
        if text.startswith(self._text):
            raise KeyboardInterrupt


def test_an_interrupted_study_goes_on_and_ends_like_a_quiet_one(small_run: Any, tmp_path: Path) -> None:
    _, quiet, _ = small_run
    study, run = parse_study(small.SMALL), RunDirectory(tmp_path)
    for text in ("calibration ...", "calibration:", "trials:", "report ..."):
        with pytest.raises(KeyboardInterrupt):
            run_study(study, check_study(study), run, RunOptions(executor="local"), Interrupting(text))
        found = read_status(run)
        assert found.state == "failed"
        assert found.error.startswith("interrupted")
        written = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("trials/*.done")}
        dense = (tmp_path / "cache" / "dense.json").stat().st_mtime_ns
    failed, said = small.run(study, tmp_path)
    assert failed == 0
    assert "3 of 3 trials were complete already" in said
    assert {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("trials/*.done")} == written
    assert (tmp_path / "cache" / "dense.json").stat().st_mtime_ns == dense
    for name in small.TABLES:
        assert small.timeless_table(tmp_path, name) == small.timeless_table(quiet, name), name
    assert not list((tmp_path / "cache").glob("shards/*"))
    assert not list((tmp_path / "cache").glob("checkpoints/*"))


class Shards(ProgressReporter):
    """Notes how many images were read for each shard of a pass, and may be interrupted after the first of them."""

    def __init__(self, interrupted_in: str = "") -> None:
        super().__init__(Console(file=io.StringIO(), width=200))
        self.read: dict[str, list[int]] = {}
        self._interrupted_in = interrupted_in

    @contextmanager
    def shards(self, name: str, num_shards: int) -> Iterator[Any]:
        def on_shard(done: int, total: int, samples: int = 0) -> None:
            self.read.setdefault(name, []).append(samples)
            if name == self._interrupted_in:
                raise KeyboardInterrupt

        yield on_shard


def test_shards_of_a_later_pass_are_kept_where_an_earlier_pass_is_complete(tmp_path: Path) -> None:
    run, local = RunDirectory(tmp_path), RunOptions(executor="local")
    unrepaired = parse_study({**small.SMALL, "repair": {"compensation": "none"}})
    with pytest.raises(KeyboardInterrupt):
        run_study(unrepaired, check_study(unrepaired), run, local, Interrupting("trials:"))
    assert run.exists("cache/calibration.safetensors.done")
    study = parse_study(small.SMALL)
    with pytest.raises(KeyboardInterrupt):
        run_study(study, check_study(study), run, local, Shards("second moments"))
    resumed = Shards()
    assert run_study(study, check_study(study), run, local, resumed) == 0
    # Of 200 images in shards of 64 every fifth is held back. The first shard is there; no statistics are measured.
    assert resumed.read == {"second moments": [0, 51, 51, 6]}
    assert not run.exists("cache/shards")


def test_shards_of_the_first_pass_are_kept_until_the_second_is_complete(tmp_path: Path) -> None:
    sweep = {**small.SMALL["sweep"], "methods": ["coverage"], "coverage_metrics": ["entropy"]}
    study, run = parse_study({**small.SMALL, "sweep": sweep}), RunDirectory(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        run_study(study, check_study(study), run, RunOptions(executor="local"), Shards("histograms"))
    assert not run.exists("cache/moments.safetensors")
    resumed = Shards("histograms")
    with pytest.raises(KeyboardInterrupt):
        run_study(study, check_study(study), run, RunOptions(executor="local"), resumed)
    assert resumed.read == {"calibration": [0, 0, 0, 0], "histograms": [0]}


def test_a_failing_trial_is_a_row_and_the_others_go_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from cleanai_ray.registry import METHODS

    for attribute in ("_values", "_summaries"):
        monkeypatch.setattr(METHODS, attribute, getattr(METHODS, attribute).copy())
    sweep = {"methods": ["refusing", "magnitude"], "ratios": [0.3]}
    settings = {**small.SMALL, "plugins": ["executors.plugin_methods"], "finetune": {"epochs": 0}, "sweep": sweep}
    failed, said = small.run(parse_study(settings), tmp_path)
    sys.modules.pop("executors.plugin_methods")
    assert failed == 1
    found = {row["method"]: row for row in small.timeless_table(tmp_path)}
    assert (found["refusing"]["status"], found["magnitude"]["status"]) == ("failed", "ok")
    assert found["refusing"]["error"].startswith("ValueError: no score for ")
    assert "failed: refusing" in said


@pytest.mark.parametrize(
    ("words", "facts"),
    [
        (["--executor", "local", "--address", "auto"], ("--address", "'auto'", "local", "--executor ray")),
        (["--executor", "cluster"], ("--executor", "'cluster'", "local, ray")),
        (["--executor", "local", "--set", "resources.gpus_per_trial=64"], ("gpus_per_trial", "64", "at most")),
    ],
)
def test_what_the_local_executor_cannot_do_is_one_sentence(
    words: list[str], facts: tuple[str, ...], study_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", str(study_file), "--out", str(tmp_path / "run"), *words]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    for fact in facts:
        assert fact in said


PLUGIN = '''
from contextlib import contextmanager
from cleanai_ray.executors.local import LocalExecutor
from cleanai_ray.registry import EXECUTORS


class Counting(LocalExecutor):
    def run_trials(self, inputs, groups, state, refresh):
        super().run_trials(inputs, groups, state, refresh)
        self.store.write("counted.txt", str(len(groups)).encode())


@EXECUTORS.register("counting")
@contextmanager
def open_counting(study, run, address=None):
    """Counts groups of trials."""
    yield Counting(study, run)
'''


def test_an_executor_is_one_new_file(study_file: Path, tmp_path: Path) -> None:
    assert EXECUTORS.names() == ("local", "ray")
    with new_file(EXECUTORS, "counting", PLUGIN, tmp_path / "executors"):
        assert main(["run", str(study_file), "--out", str(tmp_path / "run"), "--executor", "counting"]) == 0
    assert (tmp_path / "run" / "counted.txt").read_text() == "1"
