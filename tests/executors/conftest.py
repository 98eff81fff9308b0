"""The small study, run once by each executor."""

from __future__ import annotations

import pytest
import small_study as small

from cleanai_ray.config.study import parse_study


@pytest.fixture(scope="session")
def small_run(tmp_path_factory):
    """The small study, run in this process: the study, its folder and what was printed."""
    return _run(tmp_path_factory.mktemp("small"), "local")


@pytest.fixture(scope="session")
def small_run_on_ray(start_ray, tmp_path_factory):
    """The small study, run on Ray: the study, its folder and what was printed."""
    start_ray()
    return _run(tmp_path_factory.mktemp("small_on_ray"), "ray")


def _run(folder, executor):
    study = parse_study(small.SMALL)
    failed, said = small.run(study, folder, executor, report=executor == "local")
    assert failed == 0, said
    return study, folder, said
