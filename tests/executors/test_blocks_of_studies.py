"""A study that removes residual blocks: priced once, gone in every trial, and known to every table and file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch

from cleanai_ray.analysis.findings import find
from cleanai_ray.analysis.frames import StudyFrames
from cleanai_ray.config.study import Study, parse_study
from cleanai_ray.errors import PruningError
from cleanai_ray.executors import measures
from cleanai_ray.models import build_model
from cleanai_ray.pruning.plan import PruningPlan
from cleanai_ray.pruning.saved_model import load_model
from cleanai_ray.report.sections import write_document
from cleanai_ray.stages.planning import check_study, describe_plan
from cleanai_ray.storage import schemas
from cleanai_ray.storage.run_directory import RunDirectory
from tests.small_study import SMALL, run

BLOCKS = [f"layer{stage}.{place}" for stage in (1, 2, 3) for place in ((1, 2) if stage > 1 else (0, 1, 2))]


def study(remove_blocks: dict[str, Any], **sections: Any) -> Study:
    document = {
        **SMALL,
        "sweep": {"methods": ["wanda", "reconstruction"], "budgets": [{"macs": 0.6}], "modes": ["global"]},
        "finetune": {"epochs": 0},
        "pruning": {"remove_blocks": remove_blocks},
        "repair": {"compensation": "closed_form"},
        "evaluation": {"samples": 100, "latency": None},
        "output": {"save_models": "all"},
        **sections,
    }
    return parse_study(document)


def table(folder: Path, name: str) -> pl.DataFrame:
    return pl.read_parquet(folder / name)


@pytest.fixture(scope="module")
def cheapest(tmp_path_factory: pytest.TempPathFactory) -> tuple[Study, Path]:
    asked, folder = study({"count": 2}), tmp_path_factory.mktemp("cheapest")
    failed, said = run(asked, folder)
    assert failed == 0, said
    assert "residual blocks that become their shortcuts: " in said
    return asked, folder


def test_the_cheapest_blocks_are_those_of_the_lowest_price(cheapest: tuple[Study, Path]) -> None:
    blocks = table(cheapest[1], schemas.BLOCKS_FILE)
    assert set(BLOCKS) <= set(blocks["block"])
    assert blocks["price"].to_list() == pytest.approx((blocks["divergence_repaired"] / blocks["macs_share"]).to_list())
    assert set(blocks.filter("is_removed")["block"]) == set(blocks.sort("price")["block"][:2])


def test_every_trial_is_without_them_and_keeps_its_budget(cheapest: tuple[Study, Path]) -> None:
    removed = table(cheapest[1], schemas.BLOCKS_FILE).filter("is_removed").sort("block_index")
    results = table(cheapest[1], schemas.RESULTS_FILE)
    assert results["removed_blocks"].to_list() == [removed["block"].to_list()] * 2
    # The budget is of the dense model, blocks included: what is left of 60 % is narrowed.
    assert (results["macs"] / results["macs_dense"]).to_list() == pytest.approx([0.59, 0.59], abs=0.0101)
    layers = table(cheapest[1], schemas.LAYERS_FILE)
    gone = {name for names in removed["layers"] for name in names}
    for _, rows in layers.group_by("trial_id"):
        without = set(rows.filter(pl.col("out_channels") == 0)["layer"])
        assert without == gone & set(rows["layer"])
        assert without


def test_a_saved_model_is_without_them(cheapest: tuple[Study, Path]) -> None:
    asked, folder = cheapest
    for row in table(folder, schemas.RESULTS_FILE).iter_rows(named=True):
        place = f"models/{row['trial_id']}"
        plan = PruningPlan.from_json((folder / place / "plan.json").read_text())
        assert [block.name for block in plan.blocks] == row["removed_blocks"]
        assert "2 residual blocks become their shortcut" in " ".join(plan.explain().split())
        assert plan.request["bounds"]["remove_blocks"]["count"] == 2
        model = load_model(build_model(asked.model.model_copy(update={"train": None})), RunDirectory(folder), place)
        names = {name for name, _ in model.named_modules()}
        assert not any(f"{block}.conv1" in names for block in row["removed_blocks"])
        assert sum(value.numel() for value in model.parameters()) == row["params"]
        assert model.eval()(torch.zeros(1, 1, 8, 8)).shape == (1, 10)


def test_statistics_and_curves_are_of_the_model_without_them(cheapest: tuple[Study, Path]) -> None:
    gone = {name for names in table(cheapest[1], schemas.BLOCKS_FILE).filter("is_removed")["layers"] for name in names}
    for name, column in ((schemas.COVERAGE_FILE, "layer"), (schemas.SENSITIVITY_FILE, "group")):
        found = set(table(cheapest[1], name)[column])
        assert found
        assert not found & gone


def test_they_are_priced_once(cheapest: tuple[Study, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    asked, folder = cheapest
    before = table(folder, schemas.RESULTS_FILE)
    monkeypatch.setattr(measures, "_measure_blocks", None)  # It must not be asked for again.
    assert run(asked, folder)[0] == 0
    assert table(folder, schemas.RESULTS_FILE).equals(before)


def test_the_report_lists_their_prices(cheapest: tuple[Study, Path]) -> None:
    frames = StudyFrames.load(RunDirectory(cheapest[1]))
    document = write_document(frames, find(frames), {})
    (chapter,) = [chapter for chapter in document.chapters if chapter.title == "Residual blocks"]
    words, prices = chapter.blocks[:2]
    assert "2 of " in words.text
    removed = frames.blocks.filter("is_removed").sort("block_index")
    assert ", ".join(removed["block"]) in words.text
    assert [row[0] for row in prices.rows] == frames.blocks.sort("block_index")["block"].to_list()
    assert [prices.rows[place][-1] for place in prices.highlighted] == ["yes", "yes"]


def test_named_blocks_in_several_steps_with_fine_tuning_timed_in_a_target(tmp_path: Path) -> None:
    sweep = {"methods": ["wanda"], "ratios": [0.3], "modes": ["local"], "steps": [2]}
    timing = {"latency": {"batch_sizes": [1], "warmup": 1, "runs": 5}, "target": {"backend": "torch"}}
    asked = study(
        {"names": ["layer2.1", "layer1.1"]},
        sweep=sweep,
        finetune={"epochs": 1, "between_steps": 1},
        evaluation={"samples": 100, **timing},
        pruning={"remove_blocks": {"names": ["layer2.1", "layer1.1"]}, "ignored_layers": ["layer1.1.conv1"]},
    )
    failed, said = run(asked, tmp_path)
    assert failed == 0, said
    (row,) = table(tmp_path, schemas.RESULTS_FILE).to_dicts()
    assert row["removed_blocks"] == ["layer1.1", "layer2.1"]
    assert row["speedup_target"] > 0
    assert row["warnings"] == [text for text in row["warnings"] if "could not be timed" not in text]
    assert set(table(tmp_path, schemas.BLOCKS_FILE).filter("is_removed")["block"]) == {"layer1.1", "layer2.1"}


def test_plan_names_them_and_refuses_a_name_that_is_none(tmp_path: Path) -> None:
    asked = study({"macs": 0.2})
    planned = describe_plan(asked, check_study(asked), RunDirectory(tmp_path))
    assert "residual blocks to remove: the cheapest that save 20% of the MACs" in planned.summary
    with pytest.raises(PruningError, match=r"pruning.remove_blocks.names names 'layer1.7'.*did you mean 'layer1"):
        check_study(study({"names": ["layer1.7"]}))


def test_too_many_are_refused_before_any_trial_runs(tmp_path: Path) -> None:
    with pytest.raises(PruningError, match="count is 99; allowed: at most"):
        run(study({"count": 99}), tmp_path)
