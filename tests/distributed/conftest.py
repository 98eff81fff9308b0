"""A small study on real digits, and what running it takes."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from cleanai_ray.artifacts import RunDirectory
from cleanai_ray.distributed.progress import Narrator
from cleanai_ray.distributed.runner import run_study
from cleanai_ray.planning import check_study
from cleanai_ray.study import Study, parse_study

SMALL: dict[str, Any] = {
    "name": "small",
    "model": {"name": "resnet20", "num_classes": 10, "input_shape": [1, 8, 8], "train": {"epochs": 2}},
    "data": {"name": "digits", "calibration": {"samples": 200, "shard_size": 64}},
    "sweep": {"methods": ["coverage", "taylor", "random"], "ratios": [0.3], "modes": ["local"], "steps": [2]},
    "finetune": {"epochs": 1},
    "evaluation": {"samples": 100, "latency": {"batch_sizes": [1, 4], "warmup": 1, "runs": 5}},
    # Another process of tests runs beside this one: a second actor would wait for a core more than it computes.
    "resources": {"calibration_actors": 1, "max_concurrent_trials": 1},
}


def run(study: Study, folder: Any) -> tuple[int, str]:
    """Run a study on the Ray that is there, and return the number of failed trials and what was said."""
    said = io.StringIO()
    narrator = Narrator(Console(file=said, width=200, highlight=False))
    failed = run_study(
        study, check_study(study), RunDirectory(folder), address=None, command="cleanai run", narrator=narrator
    )
    return failed, said.getvalue()


@pytest.fixture(scope="session")
def small_run(ray_session, tmp_path_factory):
    """The small study, run once: its study, folder and what was said."""
    folder = tmp_path_factory.mktemp("small")
    study = parse_study(SMALL)
    failed, said = run(study, folder)
    assert failed == 0, said
    return study, folder, said
