"""A study whose budgets, of work and of time, are each spent on blocks and on widths together.

Time is that of a machine on which the work alone counts, so that what is reached is known.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pytest
import torch
from torch import nn

from cleanai_ray.analysis.findings import find
from cleanai_ray.analysis.frames import StudyFrames
from cleanai_ray.config.study import Study, parse_study
from cleanai_ray.executors import measures
from cleanai_ray.nn.complexity import measure_complexity
from cleanai_ray.profile.clock import FunctionClock
from cleanai_ray.pruning.plan import PruningPlan
from cleanai_ray.report.sections import write_document
from cleanai_ray.stages import blocks, latency_profile, prune
from cleanai_ray.storage import schemas
from cleanai_ray.storage.run_directory import RunDirectory
from tests.small_study import SMALL, run

pytestmark = pytest.mark.slow
BUDGETS = ["macs=0.4", "latency=0.6"]
EXAMPLE = torch.zeros(1, 1, 8, 8)


def study() -> Study:
    timing = {"latency": {"batch_sizes": [1], "warmup": 1, "runs": 5}, "target": {"backend": "torch", "multiple": 8}}
    return parse_study(
        {
            **SMALL,
            "model": {**SMALL["model"], "train": {"epochs": 1}},
            "sweep": {"methods": ["wanda"], "budgets": [{"macs": 0.4}, {"latency": 0.6}]},
            "data": {"name": "digits", "calibration": {"samples": 64, "shard_size": 64}},
            "finetune": {"epochs": 0},
            "pruning": {"remove_blocks": "auto", "check": False},
            "repair": {"compensation": "none", "batch_norm": "none"},
            "evaluation": {"samples": 50, **timing},
            "output": {"save_models": "all"},
        }
    )


def macs_ratio(dense: nn.Module, pruned: nn.Module) -> float:
    return measure_complexity(pruned, EXAMPLE).macs / measure_complexity(dense, EXAMPLE).macs


@pytest.fixture(scope="module")
def machine() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for module in (blocks, latency_profile, prune):
            patch.setattr(module, "study_clock", lambda workspace: FunctionClock(macs_ratio))
        yield


@pytest.fixture(scope="module")
def done(machine: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("by_budget")
    failed, said = run(study(), folder)
    assert failed == 0, said
    return folder, said


def choice(folder: Path, budget: str) -> dict:
    return json.loads((folder / "cache/block_choices" / f"{budget}.json").read_text())


def test_each_budget_has_blocks_of_its_own(done: tuple[Path, str]) -> None:
    folder, said = done
    results = pl.read_parquet(folder / schemas.RESULTS_FILE)
    assert len(results) == len(BUDGETS)
    for row, budget in zip(results.iter_rows(named=True), BUDGETS, strict=True):
        found = choice(folder, budget)
        assert (row["removed_blocks"] or []) == found["names"]
        assert found["error"] <= found["error_without"]
        assert f"residual blocks for {budget}: {found['why']}" in " ".join(said.split())
        plan = PruningPlan.from_json((folder / f"models/{row['trial_id']}/plan.json").read_text())
        assert [block.name for block in plan.blocks] == found["names"]
        assert plan.achieved["blocks"] == found
        assert plan.request["bounds"]["remove_blocks"] == "auto"
        assert row["macs"] / row["macs_dense"] <= float(budget.partition("=")[2]) * 1.02
    assert any(choice(folder, budget)["names"] for budget in BUDGETS)


def test_the_time_without_blocks_is_predicted(done: tuple[Path, str]) -> None:
    """The time is the work, and the prediction is that of the dense model's profile without the blocks."""
    row = pl.read_parquet(done[0] / schemas.RESULTS_FILE).to_dicts()[1]
    assert row["removed_blocks"]
    assert 1 / row["speedup_predicted"] == pytest.approx(row["macs"] / row["macs_dense"], abs=0.05)
    blocks = pl.read_parquet(done[0] / schemas.BLOCKS_FILE)
    assert blocks["time_share"].to_list() == pytest.approx(blocks["macs_share"].to_list())


def test_the_table_of_blocks_has_their_budgets(done: tuple[Path, str]) -> None:
    chosen = {budget: set(choice(done[0], budget)["names"]) for budget in BUDGETS}
    for row in pl.read_parquet(done[0] / schemas.BLOCKS_FILE).iter_rows(named=True):
        assert row["budgets"] == [budget for budget in BUDGETS if row["block"] in chosen[budget]]
        assert row["is_removed"] == bool(row["budgets"])
        assert 0 < row["params_share"] < 1


def test_the_report_says_which_blocks_each_budget_takes(done: tuple[Path, str]) -> None:
    frames = StudyFrames.load(RunDirectory(done[0]))
    document = write_document(frames, find(frames), {})
    (chapter,) = [chapter for chapter in document.chapters if chapter.title == "Residual blocks"]
    words, prices = chapter.blocks[:2]
    for budget in BUDGETS:
        assert f"{budget}: {', '.join(choice(done[0], budget)['names']) or 'none pays'}" in words.text
    assert len(prices.rows) == len(frames.blocks)


def test_choices_are_made_once(done: tuple[Path, str], monkeypatch: pytest.MonkeyPatch) -> None:
    folder = done[0]
    before = pl.read_parquet(folder / schemas.BLOCKS_FILE)
    (folder / schemas.BLOCKS_FILE).unlink()
    name = pl.read_parquet(folder / schemas.RESULTS_FILE)["trial_id"][0]
    for file in (folder / "trials").glob(f"{name}*"):
        file.unlink()
    monkeypatch.setattr(measures, "_measure_blocks", None)  # They must not be asked for again.
    monkeypatch.setattr(measures, "_choose_blocks", None)
    assert run(study(), folder)[0] == 0
    assert pl.read_parquet(folder / schemas.BLOCKS_FILE).equals(before)
