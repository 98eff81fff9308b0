"""What the choice of a budget's blocks reads of a study, and what it leaves valid."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from cleanai_ray.config.sections import CalibrationSection, PruningSection
from cleanai_ray.config.study import Study, Trial, parse_study
from cleanai_ray.config.sweep import Budget
from cleanai_ray.executors import timed_alone
from cleanai_ray.graph.block import Block
from cleanai_ray.pruning.measurements import Measurements
from cleanai_ray.pruning.plan import BlockPlan
from cleanai_ray.pruning.pruning_job import PruningJob
from cleanai_ray.sensitivity import BlockError, measuring
from cleanai_ray.sensitivity.block_judge import BlockJudge
from cleanai_ray.stages import block_choice
from cleanai_ray.stages.blocks import BLOCKS_FILE, PricedBlocks, blocks_as_json, choice_file
from cleanai_ray.stages.completed import completed_records, record_name
from cleanai_ray.stages.fingerprints import block_choice_key, trial_key
from cleanai_ray.stages.planning import check_study, describe_plan
from cleanai_ray.statistics import CalibrationOptions
from cleanai_ray.storage.run_directory import RunDirectory
from cleanai_ray.tasks.base import find_task
from tests.small_nets import batches, build, example
from tests.small_study import SMALL

OWN_LOSS = "torch.nn.functional:cross_entropy"


def study(task: dict[str, Any] | None = None, **calibration: Any) -> Study:
    sweep = {"methods": ["taylor"], "budgets": [{"macs": 0.4}, {"macs": 0.6}], "controls": {"kinds": ["torch_pruning"]}}
    return parse_study(
        {
            **SMALL,
            "model": {**SMALL["model"], "train": None},
            "data": {"name": "digits", "calibration": {"samples": 64, "shard_size": 64, **calibration}},
            "sweep": sweep,
            "finetune": {"epochs": 0},
            "pruning": {"remove_blocks": "auto"},
            "output": {"save_models": "none"},
            **({"task": task} if task else {}),
        }
    )


def test_the_choice_depends_on_the_loss_and_the_precision_of_calibration() -> None:
    budget = Budget(macs=0.4)
    studies = [study(), study({"loss": OWN_LOSS}), study(precision="bfloat16"), study(threshold=0.1)]
    assert len({block_choice_key(one, "weights", budget) for one in studies}) == len(studies)


def test_blocks_are_chosen_with_the_loss_and_the_calibration_of_the_study(monkeypatch: pytest.MonkeyPatch) -> None:
    jobs: list[PruningJob] = []
    monkeypatch.setattr(block_choice, "BlockJudge", lambda job, *_, **__: jobs.append(job))
    monkeypatch.setattr(block_choice, "choose_for_budget", lambda *_: None)
    for one in (study(), study({"loss": OWN_LOSS}, threshold=0.25, top_k=3)):
        workspace = check_study(one)
        block_choice.choose_study_blocks(workspace, nn.Identity(), PricedBlocks(), Budget(macs=0.4), None)
    assert [job.loss is None for job in jobs] == [True, False]
    assert (jobs[1].calibration.threshold, jobs[1].calibration.top_k) == (0.25, 3)


def test_a_job_calibrates_as_its_section_says(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[CalibrationOptions] = []
    monkeypatch.setattr(measuring, "collect_statistics", lambda network, shown, options, loss: asked.append(options))
    section = CalibrationSection(threshold=0.25, top_k=3, sections=8, observe="output", precision="bfloat16")
    job = PruningJob(
        model=build("plain"),
        example_inputs=example(),
        trial=Trial(method="coverage", coverage_metric="entropy", ratio=0.5),
        bounds=PruningSection(),
        task=find_task("classification"),
    )
    measuring.measure_for(job, Measurements(), batches())
    measuring.measure_for(PruningJob(**{**vars(job), "calibration": section}), Measurements(), batches())
    assert asked[0] == CalibrationOptions(sections=64)
    assert asked[1] == CalibrationOptions(threshold=0.25, top_k=3, sections=8, outputs=True, precision="bfloat16")


def test_a_record_of_other_blocks_than_are_chosen_now_is_not_complete(tmp_path: Path) -> None:
    """The control keeps its full depth, and a trial that failed lost no blocks."""
    chosen, run = study(), RunDirectory(tmp_path)
    lower, upper, *controls = chosen.trials()
    assert [control.control is not None for control in controls] == [True, True]
    for trial, blocks in ((lower, ["a"]), (upper, None), *((control, None) for control in controls)):
        run.write_json(
            record_name(trial.trial_id), {"row": {"status": "ok", "removed_blocks": blocks, "trial_id": trial.trial_id}}
        )
        run.mark(record_name(trial.trial_id), trial_key(chosen, trial, "weights"))

    def complete() -> set[str]:
        return set(completed_records(chosen, run, "weights"))

    every = {trial.trial_id for trial in chosen.trials()}
    assert complete() == every  # as long as nothing was chosen
    for trial, first, second in ((lower, ["a"], ["a", "b"]), (upper, [], ["a"])):
        assert trial.budget is not None
        name = choice_file("cache", trial.budget)
        for names, expected in ((first, every), (second, every - {trial.trial_id}), (first, every)):
            run.write_json(name, {"names": names})
            run.mark(name, block_choice_key(chosen, "weights", trial.budget))
            assert complete() == expected
    run.write_json(
        record_name(lower.trial_id), {"row": {"status": "failed", "removed_blocks": None, "trial_id": lower.trial_id}}
    )
    run.mark(record_name(lower.trial_id), trial_key(chosen, lower, "weights"))
    assert complete() == every


def test_a_plan_does_not_promise_a_calibration_of_blocks_that_are_not_chosen(tmp_path: Path) -> None:
    told = describe_plan(study(), check_study(study()), RunDirectory(tmp_path)).summary
    assert any("calibration: once for each choice of blocks, 1 shard" in sentence for sentence in told)


@pytest.mark.parametrize("time", [0.0, 0.2, None])
def test_blocks_that_save_no_time_are_told_apart_from_blocks_that_were_not_timed(
    time: float | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = BlockPlan(block=Block(name="a", form="block", end=None, shape=(1,)), mean=(0.0,))
    run, chosen = RunDirectory(tmp_path), study()
    error = BlockError(plan=plan, error=0.1, macs=0.1, time=time)
    run.write_bytes(f"cache/{BLOCKS_FILE}", PricedBlocks(errors=(error,)).to_bytes())
    latency = SimpleNamespace(predict=lambda removed: 3.0, dense_ms=4.0)
    monkeypatch.setattr(timed_alone, "predicted_without", lambda workspace, profile, plans, saved: latency)
    record = {"blocks": blocks_as_json([plan]), "removed": {}}
    context: Any = SimpleNamespace(study=chosen, run=run, workspace=None)
    profile: Any = None
    found = timed_alone._predicted_without_blocks(context, chosen.trials()[0], record, profile)
    assert found == ((None, None) if time is None else (3.0, 4.0))


def test_a_judge_tells_outputs_that_are_not_finite_from_a_budget_that_cannot_be_met() -> None:
    job = PruningJob(
        model=build("plain"),
        example_inputs=example(),
        trial=Trial(method="magnitude", mode="global", budget=Budget(macs=0.5)),
        bounds=PruningSection(round_to=None),
        task=find_task("classification"),
    )
    judge = BlockJudge(job, batches(), repair=None)
    assert 0 < judge(()) < math.inf
    with torch.no_grad():
        [module for module in job.model.modules() if isinstance(module, nn.Linear)][-1].bias.fill_(math.nan)
    error = judge(())
    assert math.isnan(error)
    judge.require_met(error)
