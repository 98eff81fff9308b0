"""A run directory has one driver at a time, and a killed one leaves no lock."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cleanai_ray.errors import ArtifactError
from cleanai_ray.storage.locking import locked
from cleanai_ray.storage.run_directory import RunDirectory

HOLDER = """
import sys, time
from cleanai_ray.storage.run_directory import RunDirectory
from cleanai_ray.storage.locking import locked
with locked(RunDirectory(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def holder(tmp_path: Path):
    """Another process that holds the run directory."""
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_the_second_driver_is_refused_and_told_who_the_first_is(holder, tmp_path: Path) -> None:
    with (
        pytest.raises(ArtifactError, match=rf"in use by process {holder.pid} on .*, since 20\d\d-.*--out"),
        locked(RunDirectory(tmp_path)),
    ):
        pass


def test_a_killed_driver_leaves_no_lock(holder, tmp_path: Path) -> None:
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    with locked(RunDirectory(tmp_path)):
        assert RunDirectory(tmp_path).read_json("lock.json")["pid"] == os.getpid()


def test_a_driver_that_ends_leaves_nothing_that_says_it_runs(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    for _ in range(2):
        with locked(run):
            assert run.read_json("lock.json")["since"] <= time.time()
        assert not run.exists("lock.json")


def test_a_folder_that_cannot_be_made_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(ArtifactError, match=r"output\.dir '.*file/run' cannot be made"),
        locked(RunDirectory(tmp_path / "file" / "run")),
    ):
        pass
