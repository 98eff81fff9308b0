r"""A benchmark of start-up: wall-clock seconds of commands that compute nothing, each in a process of its own.

A small study of digits is run once in one process, untimed, so that `explain` and the cached `run` find its results.
What a command imports is most of its time: `import` is that of an interpreter which imports the same modules and does
nothing, and `modules` their number. `CPU` is the seconds that it computed: a busy machine changes it less.

python jobs/bench_startup.py
python jobs/bench_startup.py --repeats 5 --executor ray
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

SETTINGS = (
    "model.train.epochs=1",
    "data.calibration.samples=64",
    "sweep.methods=[magnitude, random]",
    "sweep.steps=[1]",
    "finetune.epochs=0",
    "evaluation.samples=100",
    "evaluation.latency.runs=5",
)
STUDY = Path(__file__).parent / "studies" / "quickstart.yaml"
HEADER = ("command", "seconds", "CPU", "import", "modules")
_LINE = "{:14}{:>9}{:>9}{:>9}{:>9}"

_WATCHED = """\
import sys
from cleanai_ray.cli import main
code = main(sys.argv[1:])
if not code:
    print(*sys.modules, file=sys.stderr)
sys.exit(code)
"""
_IMPORTING = """\
import contextlib, importlib, sys
for name in sys.argv[1].split():
    with contextlib.suppress(Exception):
        importlib.import_module(name)
"""


def commands(study: str, run: str, executor: str) -> dict[str, list[str]]:
    """Return the words of every command that is timed, by its name."""
    words = [word for setting in SETTINGS for word in ("--set", setting)]
    return {
        "--help": ["--help"],
        "--version": ["--version"],
        "list methods": ["list", "methods"],
        "plan": ["plan", study, "--out", run, *words],
        "status": ["status", run],
        "explain": ["explain", run],
        "run (cached)": ["run", study, "--out", run, "--executor", executor, *words],
    }


def timed(program: str, words: Sequence[str], repeats: int) -> tuple[float, float, str]:
    """Return the median seconds of a program by the clock and of the CPU, and what it wrote to standard error last.

    Raises:
        RuntimeError: When it fails.
    """
    seconds, computed, told = [], [], ""
    for _ in range(repeats):
        started, before = time.perf_counter(), _cpu_seconds()
        done = subprocess.run([sys.executable, "-c", program, *words], capture_output=True, text=True, check=False)
        seconds.append(time.perf_counter() - started)
        computed.append(_cpu_seconds() - before)
        told = done.stderr
        if done.returncode:
            raise RuntimeError(f"cleanai {' '.join(words)} ended with {done.returncode}: {told[-500:]}")
    return statistics.median(seconds), statistics.median(computed), told


def _cpu_seconds() -> float:
    """Return the CPU seconds of all processes that were waited for."""
    found = resource.getrusage(resource.RUSAGE_CHILDREN)
    return found.ru_utime + found.ru_stime


def measure(name: str, words: Sequence[str], repeats: int) -> tuple[str, ...]:
    """Return the row of a command."""
    seconds, computed, told = timed(_WATCHED, words, repeats)
    modules = told.splitlines()[-1].split()
    importing, _, _ = timed(_IMPORTING, [" ".join(modules)], repeats)
    return name, f"{seconds:.2f}", f"{computed:.2f}", f"{importing:.2f}", str(len(modules))


def main(words: list[str] | None = None) -> int:
    """Print a table of all commands."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3, help="processes of each command; the median is told")
    parser.add_argument("--executor", default="local", help="of the cached run")
    options = parser.parse_args(words)
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    print(f"{os.cpu_count()} cores, load {load}, Python {sys.version.split()[0]}, medians of {options.repeats}")
    with tempfile.TemporaryDirectory() as folder:
        every = commands(str(STUDY), f"{folder}/run", options.executor)
        timed(_WATCHED, [*every["run (cached)"], "--executor", "local"], 1)
        print(_LINE.format(*HEADER))
        for name, command in every.items():
            print(_LINE.format(*measure(name, command, options.repeats)), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
