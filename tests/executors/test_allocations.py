"""The search for allocations in a study: once for all trials that share it, kept, and the same on every executor."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import small_study as small

from cleanai_ray.config.study import Study, parse_study
from cleanai_ray.errors import PruningError
from cleanai_ray.executors import allocations
from cleanai_ray.pruning.plan import PruningPlan
from cleanai_ray.stages.planning import check_study


def study_of(**sweep: Any) -> Study:
    sections = {
        "sweep": {
            "methods": ["reconstruction"],
            "budgets": [{"macs": 0.5}],
            "modes": ["local", "global"],
            "method_options": {"reconstruction": {"search": 12}},
            **sweep,
        },
        "data": {"name": "digits", "calibration": {"samples": 60, "shard_size": 64}},
        "model": {**small.SMALL["model"], "train": {"epochs": 1}},
        "finetune": {"epochs": 0},
        "repair": {"compensation": "none", "batch_norm": "none"},
        "evaluation": {"samples": 50, "latency": {"batch_sizes": [1], "warmup": 1, "runs": 5}},
        "output": {"save_models": "all"},
    }
    return parse_study({**small.SMALL, **sections})


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("searched")
    failed, _ = small.run(study_of(), folder)
    assert failed == 0
    return folder


def plans(folder: Path) -> list[PruningPlan]:
    return [PruningPlan.from_json(path.read_text()) for path in sorted(folder.glob("models/*/plan.json"))]


def test_trials_that_differ_in_the_mode_alone_share_one_search(searched: Path) -> None:
    """The prices of reconstruction decide, whatever the mode, so that the problem is the same."""
    (file,) = searched.glob("cache/allocations/*.json")
    found = json.loads(file.read_text())
    first, second = plans(searched)
    assert first.removed == second.removed
    assert first.request["mode"] != second.request["mode"]
    assert found["score"] <= found["start_score"]
    for plan in (first, second):
        blocks = {group.name: group.num_blocks for group in plan.groups}
        counts = {name: len(channels) // blocks[name] for name, channels in plan.removed.items()}
        assert counts == {name: count for name, count in found["counts"].items() if count}
        assert plan.achieved["search"] == {"kl_start": found["start_score"], "kl": found["score"], "candidates": 12}
        assert plan.achieved["macs"] <= 0.5 * plan.achieved["macs_dense"]


def test_a_study_that_goes_on_searches_no_more(searched: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any) -> None:
        raise AssertionError("a candidate was scored again")

    monkeypatch.setattr(allocations, "_score", refuse)
    # Two more trials, of other seeds, share the search as well.
    failed, said = small.run(study_of(seeds=[0, 1]), searched)
    assert failed == 0
    assert "2 of 4 trials were complete already" in said
    assert len({tuple(sorted(plan.removed.items())) for plan in plans(searched)}) == 1


def test_each_budget_has_a_search_of_its_own_and_ratios_and_latency_have_none() -> None:
    budgets = [{"macs": 0.5}, {"macs": 0.4}, {"params": 0.5}, {"latency": 0.5}]
    assert [trial.budget.limit for trial in allocations.searching_trials(study_of(budgets=budgets))] == [0.5, 0.4, 0.5]
    plain = study_of(method_options={"reconstruction": {"search": 0}})
    assert allocations.searching_trials(plain) == []


@pytest.mark.parametrize("sweep", [{"steps": [1, 2]}, {"budgets": [], "ratios": [0.3]}])
def test_a_study_whose_search_has_no_budget_to_share_out_is_refused_before_it_runs(sweep: dict[str, Any]) -> None:
    with pytest.raises(PruningError, match="search 12, which shares out a budget in one step"):
        check_study(study_of(**sweep))


@pytest.mark.ray
def test_ray_finds_the_same_allocation(searched: Path, ray_session: Any, tmp_path: Path) -> None:
    failed, _ = small.run(study_of(), tmp_path, executor="ray")
    assert failed == 0
    (alone,), (parallel,) = (sorted(folder.glob("cache/allocations/*.json")) for folder in (searched, tmp_path))
    assert alone.name == parallel.name
    assert json.loads(parallel.read_text()) == json.loads(alone.read_text())
    assert [plan.removed for plan in plans(tmp_path)] == [plans(searched)[0].removed] * 2
