"""Runs studies on a Ray of this machine's cores that lists two GPUs, which torch does not find; prints what it saw.

Usage: listed_gpus.py STUDY FOLDER
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import ray

os.environ.pop("RAY_worker_niceness", None)  # as a user starts it

from cleanai_ray.config.study import load_study
from cleanai_ray.executors.progress import ProgressReporter
from cleanai_ray.executors.ray.cluster import connected
from cleanai_ray.executors.run_study import RunOptions, run_study
from cleanai_ray.stages.planning import check_study
from cleanai_ray.storage.run_directory import RunDirectory

_init = ray.init


def _start(**options: Any) -> Any:
    return _init(**{**options, "num_cpus": 3, "num_gpus": 2, "include_dashboard": False})


@ray.remote(num_gpus=2, num_cpus=0)
class Holder:
    """Holds both GPUs, as another study would."""

    def is_there(self) -> bool:
        """Return True."""
        return True


@ray.remote(num_cpus=0)
def niceness() -> int:
    """Return how nice a worker is to other processes."""
    return os.nice(0)


def say(*words: object) -> None:
    """Write a line at once."""
    sys.stdout.write(" ".join(map(str, words)) + "\n")
    sys.stdout.flush()


def main(study: str, folder: str) -> None:
    """Run the study while nobody can have a GPU, and then another one that shares them out."""
    ray.init = _start
    with connected(None):
        say("niceness", ray.get(niceness.remote()))
        holder: Any = Holder.remote()
        assert ray.get(holder.is_there.remote())
        for name, overrides in (
            ("held", ["resources.gpus_per_trial=0", "sweep.ratios=[0.2]"]),
            ("auto", ["resources.gpus_per_trial=auto", "sweep.ratios=[0.2]"]),
            ("spread", ["finetune.num_workers=auto", "resources.gpus_per_trial=1"]),
        ):
            if name == "spread":
                ray.kill(holder)
            out = Path(folder) / name
            loaded = load_study(study, [*overrides, f"output.dir={out}"])
            say("==", name)
            options = RunOptions(executor="ray", command=name, report=False)
            failed = run_study(loaded, check_study(loaded), RunDirectory(str(out)), options, ProgressReporter())
            say("failed", failed)


if __name__ == "__main__":
    main(*sys.argv[1:])
