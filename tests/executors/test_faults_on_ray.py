"""A GPU that fails costs its process on Ray: the trial is tried once more in another, and no other trial fails."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import small_study as small

from cleanai_ray.config.study import parse_study
from cleanai_ray.registry import METHODS

pytestmark = pytest.mark.ray
PLUGIN = "executors.plugin_faults"


@pytest.fixture(autouse=True)
def _plugin(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    METHODS.names()
    for attribute in ("_values", "_summaries"):
        monkeypatch.setattr(METHODS, attribute, getattr(METHODS, attribute).copy())
    yield
    sys.modules.pop(PLUGIN, None)


def test_a_faulty_trial_is_tried_again_in_another_process_and_the_others_go_on(
    ray_session: Any, tmp_path: Path
) -> None:
    """Numerics are set in the workers, and what they say of themselves is in the run's record."""
    files = {name: tmp_path / name for name in ("asserting_once", "asserting")}
    sweep = {
        "methods": ["asserting_once", "asserting", "magnitude"],
        "ratios": [0.3],
        "method_options": {name: {"file": str(file)} for name, file in files.items()},
    }
    settings = {**small.SMALL, "plugins": [PLUGIN], "finetune": {"epochs": 0}, "sweep": sweep}
    settings |= {"evaluation": {"samples": 50, "latency": None}, "numerics": {"deterministic": True}}
    failed, said = small.run(parse_study(settings), tmp_path / "run", "ray")
    assert failed == 1, said
    found = {row["method"]: row for row in small.timeless_table(tmp_path / "run")}
    assert {name: row["status"] for name, row in found.items()} == {
        "asserting_once": "ok",
        "asserting": "failed",
        "magnitude": "ok",
    }
    error = found["asserting"]["error"]
    assert error.count("AcceleratorError: CUDA error: device-side assert triggered") == 2, error
    pids = {name: file.read_text().split() for name, file in files.items()}
    assert {name: len(set(ids)) for name, ids in pids.items()} == {"asserting_once": 2, "asserting": 2}
    # A process whose GPU failed ran nothing else, and is gone.
    broken = [pids["asserting_once"][0], *pids["asserting"]]
    assert len(set(broken)) == 3
    assert not any(is_alive(int(pid)) for pid in broken)
    (worker, *_) = json.loads((tmp_path / "run" / "environment.json").read_text())["workers"]
    assert worker["numerics"]["deterministic"] is True
    assert (worker["driver"], worker["cuda"], worker["cudnn"]) == (None, None, None)


def is_alive(pid: int) -> bool:
    """Return whether a process runs."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return "zombie" not in Path(f"/proc/{pid}/status").read_text()


@pytest.mark.slow
def test_workers_of_a_trial_start_again_after_a_fault_and_with_parts_of_batches_where_memory_ran_out(
    ray_session: Any, tmp_path: Path
) -> None:
    """Batches of 90 are 45 for each of two workers, whose device holds 30; each start again is a new pair."""
    file = tmp_path / "processes"
    options = {"asserting_once": {"file": str(file)}}
    model = {"factory": f"{PLUGIN}:hungry", "num_classes": 10, "input_shape": [1, 8, 8], "options": {"most": 30}}
    settings = {
        **small.SMALL,
        "plugins": [PLUGIN],
        "model": model,
        "sweep": {"methods": ["asserting_once"], "ratios": [0.3], "method_options": options},
        "repair": {"compensation": "none", "batch_norm": "none"},
        "finetune": {"epochs": 1, "num_workers": 2, "batch_size": 90},
        "evaluation": {"samples": 50, "latency": None},
    }
    failed, said = small.run(parse_study(settings), tmp_path / "run", "ray")
    assert failed == 0, said
    (row,) = small.timeless_table(tmp_path / "run")
    assert row["epochs_run"] == 1
    (text,) = [text for text in row["warnings"] if "parts of at most" in text]
    assert "fine-tuning" in text
    assert "batches of 45 samples in 2 parts of at most 23" in text
    # One process saw the fault, one the lack of memory, and one ended the trial.
    assert len(file.read_text().split()) == 3
