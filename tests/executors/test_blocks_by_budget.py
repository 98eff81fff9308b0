"""A study whose budgets, of work and of time, are each spent on blocks and on widths together."""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl
import pytest

from cleanai_ray.analysis.findings import find
from cleanai_ray.analysis.frames import StudyFrames
from cleanai_ray.config.study import Study, parse_study
from cleanai_ray.executors import measures
from cleanai_ray.pruning.plan import PruningPlan
from cleanai_ray.report.sections import write_document
from cleanai_ray.storage import schemas
from cleanai_ray.storage.run_directory import RunDirectory
from tests.small_study import SMALL, run

BUDGETS = ["macs=0.4", "latency=0.8"]


def study() -> Study:
    return parse_study(
        {
            **SMALL,
            "model": {**SMALL["model"], "train": {"epochs": 1}},
            "sweep": {"methods": ["wanda"], "budgets": [{"macs": 0.4}, {"latency": 0.8}]},
            "data": {"name": "digits", "calibration": {"samples": 64, "shard_size": 64}},
            "finetune": {"epochs": 0},
            "pruning": {"remove_blocks": "auto", "check": False},
            "repair": {"compensation": "none", "batch_norm": "none"},
            "evaluation": {"samples": 100, "latency": {"batch_sizes": [1], "budget_batch_size": 8, "runs": 5}},
            "output": {"save_models": "all"},
        }
    )


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
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
        assert found["error_without"] is None or found["error"] <= found["error_without"]
        assert f"residual blocks for {budget}: {found['why']}" in " ".join(said.split())
        plan = PruningPlan.from_json((folder / f"models/{row['trial_id']}/plan.json").read_text())
        assert [block.name for block in plan.blocks] == found["names"]
        assert plan.achieved["blocks"] == found
        assert plan.request["bounds"]["remove_blocks"] == "auto"
    # Three fifths of the work cannot be had as cheaply from narrower layers alone.
    assert choice(folder, BUDGETS[0])["names"]
    assert results["macs"][0] / results["macs_dense"][0] <= 0.4


def test_the_table_of_blocks_has_their_times_and_their_budgets(done: tuple[Path, str]) -> None:
    blocks = pl.read_parquet(done[0] / schemas.BLOCKS_FILE)
    chosen = {budget: set(choice(done[0], budget)["names"]) for budget in BUDGETS}
    for row in blocks.iter_rows(named=True):
        assert row["budgets"] == [budget for budget in BUDGETS if row["block"] in chosen[budget]]
        assert row["is_removed"] == bool(row["budgets"])
        assert 0 <= row["time_share"] < 1
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
    RunDirectory(folder).delete(f"trials/{name}.json")
    monkeypatch.setattr(measures, "_measure_blocks", None)  # They must not be asked for again.
    monkeypatch.setattr(measures, "_choose_blocks", None)
    assert run(study(), folder)[0] == 0
    assert pl.read_parquet(folder / schemas.BLOCKS_FILE).equals(before)
