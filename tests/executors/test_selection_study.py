"""A study whose trial is chosen on images of the training split, so that all test images are reported on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import small_study as small
import torch
from torch import nn

from cleanai_ray.analysis.frames import StudyFrames
from cleanai_ray.analysis.image_differences import ImageHits
from cleanai_ray.analysis.risks import find_risks
from cleanai_ray.config.study import Study, parse_study
from cleanai_ray.models import build_model
from cleanai_ray.pruning.saved_model import load_model
from cleanai_ray.report.sections.reproduction import _facts
from cleanai_ray.stages.planning import describe_plan
from cleanai_ray.stages.workspace import Workspace, open_workspace
from cleanai_ray.storage.image_schemas import unpack
from cleanai_ray.storage.run_directory import RunDirectory

NUM_CHOOSING = 60
SETTINGS: dict[str, Any] = {
    **small.SMALL,
    "model": {**small.SMALL["model"], "train": {"epochs": 1}},
    "sweep": {"methods": ["magnitude", "random"], "ratios": [0.3], "modes": ["local"]},
    "repair": {"compensation": "none", "batch_norm": "none"},
    "finetune": {"epochs": 0},
    "evaluation": {"samples": 100, "latency": None, "validation": {"samples": NUM_CHOOSING}},
    "output": {"save_models": "all"},
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Study, Workspace, RunDirectory]:
    study = parse_study(SETTINGS)
    folder = tmp_path_factory.mktemp("chosen") / "run"
    failed, said = small.run(study, folder, report=True)
    assert failed == 0, said
    return study, open_workspace(study.model_dump_json(), "cpu"), RunDirectory(folder)


def right(model: nn.Module, workspace: Workspace, role: str) -> np.ndarray:
    """The samples of a role that a model gets right, in their order."""
    with torch.no_grad():
        return np.concatenate([(model(x).argmax(1) == y).numpy() for x, y in workspace.batches(role)])


def test_the_tables_say_which_images_a_number_comes_from(finished: tuple[Study, Workspace, RunDirectory]) -> None:
    study, workspace, run = finished
    roles = workspace.roles
    images, rows, correct = (
        pq.read_table(run.local_path(name)).to_pylist()
        for name in ("images.parquet", "results.parquet", "correct.parquet")
    )
    places = {
        role: {(each["split"], each["number"]) for each in images if each["role"] == role}
        for role in ("validation", "test")
    }
    assert places["validation"] == {("train", int(number)) for number in roles.selection}
    assert places["test"] == {("test", int(number)) for number in roles.evaluation}
    assert (len(places["validation"]), len(places["test"])) == (NUM_CHOOSING, 100)
    kept = {each["trial_id"]: unpack(each["correct"], len(images)) for each in correct}
    for row in rows:
        dense = build_model(study.model.model_copy(update={"train": None}))
        model = load_model(dense, run, f"models/{row['trial_id']}").eval()
        own, chosen = right(model, workspace, "evaluation"), right(model, workspace, "selection")
        assert row["accuracy"] == row["accuracy_test"] == pytest.approx(own.mean())
        assert row["accuracy_validation"] == pytest.approx(chosen.mean())
        assert row["accuracy_dense"] == row["accuracy_test_dense"]
        assert (row["num_evaluated"], row["num_test"], row["num_validation"]) == (100, 100, NUM_CHOOSING)
        found = {(each["split"], each["number"]): bit for each, bit in zip(images, kept[row["trial_id"]], strict=True)}
        assert [found["test", int(number)] for number in roles.evaluation] == own.tolist()
        assert [found["train", int(number)] for number in roles.selection] == chosen.tolist()


def test_the_choice_is_made_on_them_and_everything_else_is_told_of_the_test_images(
    finished: tuple[Study, Workspace, RunDirectory],
) -> None:
    _, _, run = finished
    frames = StudyFrames.load(run)
    assert frames.choice.has_test_images
    assert frames.choice.optimism is None
    assert frames.choice.against_dense is not None
    assert frames.choice.against_dense.num_images == 100
    hits = ImageHits.of({"one": frames})
    assert hits is not None
    assert hits.num_images == 100, "methods are compared on images that are reported on"
    for row in frames.ok.rows(named=True):
        own = hits.mean([row["trial_id"]])
        assert own is not None
        assert own.mean() == pytest.approx(100 * row["accuracy_test"])
    told = dict(_facts(frames))
    assert told["images that choose"] == f"{NUM_CHOOSING} images of split train, kept out of training and calibration"
    assert not [risk for risk in find_risks(frames) if risk.kind == "choice by training images"]


def test_a_change_of_the_images_that_choose_is_another_study(
    finished: tuple[Study, Workspace, RunDirectory],
) -> None:
    study, workspace, run = finished
    cached = describe_plan(study, workspace, run)
    assert {row[-1] for row in cached.rows} == {"cached"}
    told = f"the trial is chosen on {NUM_CHOOSING} images of split train, withheld from calibration and training"
    assert any(told in sentence for sentence in cached.summary)
    evaluation = {**SETTINGS["evaluation"], "validation": {"samples": NUM_CHOOSING + 1}}
    other = parse_study({**SETTINGS, "evaluation": evaluation})
    plan = describe_plan(other, open_workspace(other.model_dump_json(), "cpu"), run)
    assert {row[-1] for row in plan.rows} == {"to run"}


def test_given_weights_may_have_been_trained_on_them(
    finished: tuple[Study, Workspace, RunDirectory], tmp_path: Path
) -> None:
    _, _, run = finished
    given = tmp_path / "dense.safetensors"
    given.write_bytes(run.read_bytes("cache/dense.safetensors"))
    model = {**SETTINGS["model"], "train": None, "weights": str(given)}
    own = parse_study({**SETTINGS, "model": model})
    summary = describe_plan(own, open_workspace(own.model_dump_json(), "cpu"), RunDirectory(tmp_path / "none")).summary
    assert any("optimistic for the choice, not for what is reported" in sentence for sentence in summary)
    frames = replace(StudyFrames.load(run), study=own.model_dump(mode="json"))
    (risk,) = [risk for risk in find_risks(frames) if risk.kind == "choice by training images"]
    assert "optimistic for the choice" in risk.sentence
    assert "not for what is reported" in risk.sentence
    assert "may have been trained on them" in dict(_facts(frames))["images that choose"]
