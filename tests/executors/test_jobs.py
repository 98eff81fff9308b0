"""Studies as jobs of a real cluster of one node, started as an operator starts it, that demands a token."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml
from executors.uninstalled import python_without_package

import cleanai_ray

pytestmark = [pytest.mark.ray, pytest.mark.slow]

REPOSITORY = Path(__file__).resolve().parents[2]
TOKEN = "4f1d0c2b9a8e7d6c5b4a39281706f5e4d3c2b1a0"
NUM_PORTS, NUM_WORKER_PORTS = 60, 50
STUDY: dict[str, Any] = {
    "name": "tiny",
    "model": {"name": "resnet20", "num_classes": 10, "input_shape": [1, 8, 8], "train": {"epochs": 1}},
    "data": {"name": "digits", "calibration": {"samples": 64}},
    "sweep": {"methods": ["magnitude"], "ratios": [0.3], "modes": ["local"]},
    "repair": {"compensation": "none", "batch_norm": "none"},
    "evaluation": {"samples": 100, "latency": None},
    "resources": {"calibration_actors": 1},
    "output": {"save_models": "none"},
}
NO_DATA = ["--set", "data={name: image_folder, root: /data/that/is/not/there}", "--set", "model.input_shape=[3,8,8]"]

# cleanai, interrupted at the moment that is the worst for asyncio: in the making of the event loop.
INTERRUPTED_EARLY = """
import asyncio, signal, sys
from cleanai_ray.cli import main

new_event_loop = asyncio.events.new_event_loop

def interrupted():
    signal.raise_signal(signal.SIGINT)
    return new_event_loop()

asyncio.events.new_event_loop = interrupted
sys.exit(main())
"""


@dataclass(frozen=True)
class Head:
    """A running head: the address of its dashboard, and what a process needs in its environment to use it."""

    address: str
    environment: dict[str, str]

    def get(self, path: str) -> Any:
        """What the dashboard answers."""
        request = urllib.request.Request(self.address + path, headers={"Authorization": f"Bearer {TOKEN}"})
        with urllib.request.urlopen(request, timeout=10) as response:
            return json.load(response)

    def run(self, folder: Path, *command: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run a command in a folder with the cluster's token, or with what else the environment is to say."""
        variables = {**self.environment, **environment}
        return subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True, check=False)

    def submit(self, folder: Path, *options: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run `cleanai submit tiny.yaml`."""
        command = [sys.executable, "-m", "cleanai_ray", "submit", "tiny.yaml", "--address", self.address, *options]
        return self.run(folder, *command, **environment)


def free_ports() -> int:
    """The first of NUM_PORTS ports that nobody listens at, below those that Ray and the system give away."""
    for _ in range(100):
        first = random.SystemRandom().randrange(7000, 9900 - NUM_PORTS)
        try:
            for port in range(first, first + NUM_PORTS):
                with socket.socket() as probe:
                    probe.bind(("", port))
        except OSError:
            continue
        return first
    raise RuntimeError("no free ports")


def start_command(first: int, folder: str) -> list[str]:
    """The command that starts the head, with every port told."""
    names = ("port", "dashboard-port", "ray-client-server-port", "dashboard-agent-listen-port", "metrics-export-port")
    names += ("dashboard-agent-grpc-port", "runtime-env-agent-port", "object-manager-port", "node-manager-port")
    ports = [f"--{name}={first + number}" for number, name in enumerate(names)]
    workers = first + len(names)
    ports += [f"--min-worker-port={workers}", f"--max-worker-port={workers + NUM_WORKER_PORTS}"]
    size = ["--num-cpus=2", "--object-store-memory=100000000"]
    return [
        str(Path(sys.executable).with_name("ray")),
        "start",
        "--head",
        "--block",
        f"--temp-dir={folder}",
        *ports,
        *size,
    ]


def wait_until_up(head: Head, process: subprocess.Popen[bytes], log: Path) -> None:
    """Return when the dashboard answers and the node is there to take a job."""
    try:
        while process.poll() is None:  # The test's time limit ends it.
            with contextlib.suppress(OSError, TypeError, KeyError):
                if head.get("/api/v0/nodes")["data"]["result"]["result"]:
                    return
            time.sleep(0.5)
        pytest.fail("the head ended")
    except pytest.fail.Exception:
        sys.stderr.write(log.read_text())
        raise


@pytest.fixture(scope="module")
def head(tmp_path_factory) -> Iterator[Head]:
    """A head with two CPUs whose token lies in a file; clients have it in a variable."""
    folder = tempfile.mkdtemp(prefix="rj", dir="/tmp")  # short: a socket's path has at most 107 bytes
    log, token = tmp_path_factory.mktemp("head") / "log", Path(folder) / "token"
    token.write_text(TOKEN)
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    inherited["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    inherited |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "token", "RAY_worker_niceness": "0"}
    first = free_ports()
    with log.open("wb") as output:
        process = subprocess.Popen(
            start_command(first, folder),
            env={**inherited, "RAY_AUTH_TOKEN_PATH": str(token)},
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    running = Head(f"http://127.0.0.1:{first + 1}", {**inherited, "RAY_AUTH_TOKEN": TOKEN})
    try:
        wait_until_up(running, process, log)
        yield running
    finally:
        process.terminate()  # it takes the cluster's processes with it
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(20)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A user's folder with a study in it, and a folder for results."""
    made = tmp_path_factory.mktemp("user")
    study = {**STUDY, "output": {**STUDY["output"], "dir": str(made / "results")}}
    (made / "tiny.yaml").write_text(yaml.safe_dump(study))
    return made


def ray_job_submit(head: Head, study: Path, *options: str, python: str = "python") -> subprocess.CompletedProcess[str]:
    """Submit the entry point as docs/how-to/cluster.md says it, from the root of the repository."""
    ray = ["ray", "job", "submit", "--address", head.address, "--working-dir", ".", "--"]
    return head.run(REPOSITORY, *ray, python, "jobs/run_study.py", "--study", str(study), *options)


@pytest.fixture(scope="module")
def finished(head, folder, tmp_path_factory) -> subprocess.CompletedProcess[str]:
    """The study, run as a job with `ray job submit`, by a Python that has the package's dependencies and not itself."""
    python = python_without_package(tmp_path_factory.mktemp("python"))
    return ray_job_submit(head, folder / "tiny.yaml", "--no-report", python=str(python))


def only_line(done: subprocess.CompletedProcess[str]) -> str:
    """The one line that a command that is refused says, having submitted nothing."""
    assert done.returncode == 2, done.stdout + done.stderr
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    (line,) = done.stderr.strip().splitlines()
    return line


def test_a_study_runs_as_a_job_by_ray_job_submit(finished, folder) -> None:
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert "1 of 1 trials succeeded" in finished.stdout
    assert pl.read_parquet(folder / "results" / "results.parquet")["status"].to_list() == ["ok"]
    assert json.loads((folder / "results" / "environment.json").read_text())["version"] == cleanai_ray.__version__
    assert not (folder / "results" / "report.html").exists()


def test_a_wrong_study_fails_its_job_with_exit_code_2(head, folder) -> None:
    done = ray_job_submit(head, folder / "tiny.yaml", "--set", "sweep.methods=[covrage]")
    assert done.returncode == 1, "ray job submit knows one exit code for all that fails"
    assert "sweep.methods" in done.stdout
    assert "did you mean 'coverage'" in done.stdout
    assert "failed with exit code 2" in done.stdout


def test_cleanai_submit_runs_the_study_of_the_users_folder_and_returns_0(head, folder, finished) -> None:
    # In the same run directory, so that the job finds the trial of the job before done.
    assert finished.returncode == 0
    done = head.submit(folder, "--memory", "0.1")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("job raysubmit_")
    assert "1 of 1 trials succeeded" in done.stdout
    assert done.stderr == ""


def test_cleanai_submit_returns_the_exit_code_of_the_job_and_not_1(head, folder) -> None:
    # Data that are missing on the cluster: only the job can find out.
    done = head.submit(folder, *NO_DATA, "--out", "artifacts/tiny")
    assert done.returncode == 2, done.stdout + done.stderr
    assert all(word in done.stdout for word in ("data.root", "'/data/that/is/not/there'", "does not exist"))
    assert all(word in done.stderr for word in ("output.dir", "'artifacts/tiny'", "copy", "--out"))


@pytest.mark.parametrize("program", [("-m", "cleanai_ray"), ("-c", INTERRUPTED_EARLY)], ids=["any time", "early"])
def test_an_interrupted_log_leaves_the_job_alone_and_says_how_to_reach_it(head, folder, program) -> None:
    command = [sys.executable, *program, "submit", "tiny.yaml", "--address", head.address, *NO_DATA]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, cwd=folder, env=head.environment, text=True, **pipes) as process:
        job = process.stdout.readline().split()[1]
        if INTERRUPTED_EARLY not in program:
            process.send_signal(signal.SIGINT)
        _, said = process.communicate()
    assert process.returncode == 130
    assert said.count("\n") == 1
    for action in ("logs --follow", "stop"):
        assert f"`ray job {action} --address {head.address} {job}`" in said
    while (details := head.get(f"/api/jobs/{job}"))["status"] in ("PENDING", "RUNNING"):  # The time limit ends it.
        time.sleep(0.5)
    assert (details["status"], details["driver_exit_code"]) == ("FAILED", 2)


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"RAY_AUTH_TOKEN": "another"}, ["Invalid authentication token", "RAY_AUTH_TOKEN"]),
        ({"RAY_AUTH_MODE": "disabled"}, ["Missing authentication token", "RAY_AUTH_MODE=token (it is disabled)"]),
    ],
)
def test_a_wrong_or_missing_token_is_told_in_a_sentence(head, folder, environment, words) -> None:
    line = only_line(head.submit(folder, **environment))
    for word in [head.address, *words]:
        assert word in line


def test_an_entry_point_that_could_never_start_is_refused_before_submitting(head, folder) -> None:
    before = head.get("/api/jobs/")
    line = only_line(head.submit(folder, "--cpus", "64", "--gpus", "1"))
    assert all(fact in line for fact in ("--cpus is 64", "more than 2 CPUs", "--gpus is 1", "more than 0 GPUs"))
    assert len(head.get("/api/jobs/")) == len(before)
