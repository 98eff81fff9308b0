"""Memory that runs out halves the batches of a study, and a GPU that fails ends the trials of this process."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import small_study as small

from cleanai_ray.config.study import parse_study
from cleanai_ray.nn.batch_limit import process_limit
from cleanai_ray.registry import METHODS

PLUGIN = "executors.plugin_faults"


@pytest.fixture(autouse=True)
def _plugin(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Forget the plug-in's methods and the limit of this process afterwards."""
    METHODS.names()  # loads the package's own, which would be forgotten as well
    for attribute in ("_values", "_summaries"):
        monkeypatch.setattr(METHODS, attribute, getattr(METHODS, attribute).copy())
    monkeypatch.setattr(process_limit, "size", None)
    yield
    sys.modules.pop(PLUGIN, None)


def settings(**changed: Any) -> dict[str, Any]:
    """The small study without fine-tuning and timing."""
    evaluation = {"samples": 100, "latency": None}
    return {**small.SMALL, "plugins": [PLUGIN], "finetune": {"epochs": 0}, "evaluation": evaluation, **changed}


def hungry(most: int, **changed: Any) -> dict[str, Any]:
    """A study of a model whose device holds a number of images at a time."""
    model = {"factory": f"{PLUGIN}:hungry", "num_classes": 10, "input_shape": [1, 8, 8], "options": {"most": most}}
    sweep = {"methods": ["coverage", "wanda"], "ratios": [0.3]}
    return settings(model=model, sweep=sweep, **changed)


def removed(folder: Path) -> list[Any]:
    return [[row["layer"], row["removed_channels"]] for row in small.timeless_table(folder, "layers.parquet")]


def test_a_study_whose_memory_runs_out_goes_on_with_smaller_batches(tmp_path: Path) -> None:
    repair = {"compensation": "closed_form", "batch_norm": "none"}
    for name, most in (("roomy", 1000), ("tight", 30)):
        failed, said = small.run(parse_study(hungry(most, repair=repair)), tmp_path / name)
        assert failed == 0, said
        assert process_limit.size is None, "the next study of this process begins without a limit"
    # The first batch has the 100 images that are scored: 100 and 50 are too many.
    warnings = json.loads((tmp_path / "tight" / "environment.json").read_text())["warnings"]
    assert warnings
    assert all("at most 25 samples" in warning for warning in warnings)
    roomy, tight = (small.timeless_table(tmp_path / name) for name in ("roomy", "tight"))
    same = ("trial_id", "status", "accuracy", "accuracy_pruned", "accuracy_dense", "macs", "num_evaluated")
    assert [[row[name] for name in same] for row in tight] == [[row[name] for name in same] for row in roomy]
    assert removed(tmp_path / "tight") == removed(tmp_path / "roomy")
    assert [row["loss"] for row in tight] == pytest.approx([row["loss"] for row in roomy], rel=1e-5)
    text = "memory ran out with larger batches: scoring ran on at most 25 samples at a time"
    assert all(text in " ".join(row["warnings"]) for row in tight)
    assert not any(row["warnings"] for row in roomy)
    environment = json.loads((tmp_path / "tight" / "environment.json").read_text())
    assert [text for text in environment["warnings"] if "calibration ran on at most 25 samples" in text]
    assert [worker["device"] for worker in environment["workers"]] == [environment["hardware"]["cpu"]]


def test_trials_after_a_fault_are_not_run_here_and_run_when_the_study_is_run_again(tmp_path: Path) -> None:
    options = {"asserting_once": {"file": str(tmp_path / "processes")}}
    sweep = {"methods": ["random", "asserting_once", "magnitude"], "ratios": [0.3], "method_options": options}
    study = parse_study(settings(sweep=sweep))
    failed, said = small.run(study, tmp_path / "run")
    assert failed == 2
    found = {row["method"]: row for row in small.timeless_table(tmp_path / "run")}
    assert found["random"]["status"] == "ok"
    assert found["asserting_once"]["error"].startswith(
        "AcceleratorError: CUDA error: device-side assert triggered; the"
    )
    assert found["magnitude"]["error"].startswith(f"not run, since trial {found['asserting_once']['trial_id']} ended")
    assert all("the same command" in found[name]["error"] for name in ("asserting_once", "magnitude"))
    # As another process would: the file of process ids is longer.
    (tmp_path / "processes").write_text("1 2")
    failed, said = small.run(study, tmp_path / "run")
    assert failed == 0, said
    assert "1 of 3 trials were complete already" in said


def test_fine_tuning_whose_memory_runs_out_says_so_of_the_trial(tmp_path: Path) -> None:
    sweep = {"methods": ["magnitude"], "ratios": [0.3]}
    changed = {"repair": {"compensation": "none", "batch_norm": "none"}, "finetune": {"epochs": 1, "batch_size": 90}}
    study = parse_study({**hungry(50), **changed, "sweep": sweep})
    failed, said = small.run(study, tmp_path)
    assert failed == 0, said
    (row,) = small.timeless_table(tmp_path)
    (text,) = [text for text in row["warnings"] if "fine-tuning" in text]
    assert "batches of 90 samples in 2 parts of at most 45" in text
    assert row["epochs_run"] == 1
