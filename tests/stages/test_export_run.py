"""What `cleanai explain` and `cleanai export` find in a run directory, and what they say where there is nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from small_nets import build, example

from cleanai_ray import api
from cleanai_ray.cli import main
from cleanai_ray.config.sections import ModelSection
from cleanai_ray.models import build_model
from cleanai_ray.pruning.plan import PruningPlan
from cleanai_ray.pruning.saved_model import save_model
from cleanai_ray.storage import schemas
from cleanai_ray.storage.run_directory import RunDirectory
from cleanai_ray.tasks.base import find_task

ACCURACIES = {"good-trial": 0.9, "poor-trial": 0.8, "not-saved": 0.7}


@pytest.fixture(scope="module")
def plans() -> dict[str, PruningPlan]:
    ratios = {"good-trial": 0.25, "poor-trial": 0.5}
    return {
        name: api.prune(build("residual"), example(), method="magnitude", ratio=ratio).plan
        for name, ratio in ratios.items()
    }


@pytest.fixture
def run(tmp_path: Path, plans: dict[str, PruningPlan]) -> RunDirectory:
    """A run directory of three trials, of which two left a model."""
    run = RunDirectory(tmp_path / "run")
    rows = [
        {"trial_id": name, "status": schemas.OK, "accuracy": accuracy, "macs": 1, "warnings": []}
        for name, accuracy in ACCURACIES.items()
    ]
    run.write_table(schemas.RESULTS_FILE, schemas.to_table(rows, schemas.RESULTS))
    for name, plan in plans.items():
        run.write_text(f"models/{name}/plan.json", plan.to_json())
    return run


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], "good-trial"),
        (["--trial", "best"], "good-trial"),
        (["--trial", "recommended"], "good-trial"),
        (["--trial", "poor-trial"], "poor-trial"),
    ],
)
def test_a_plan_of_a_run_is_explained(
    run: RunDirectory,
    plans: dict[str, PruningPlan],
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    expected: str,
) -> None:
    assert main(["explain", run.location, *arguments]) == 0
    assert capsys.readouterr().out == f"Trial {expected}\n{plans[expected].explain()}\n"


def test_a_folder_that_a_model_was_saved_to_is_explained(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = api.prune(build("residual"), example(), method="magnitude", ratio=0.5)
    api.save(result, tmp_path / "small")
    for words in ([], ["--trial", "recommended"]):
        assert main(["explain", str(tmp_path / "small"), *words]) == 0
        assert capsys.readouterr().out == f"{result.plan.explain()}\n"


SEGMENTER = """
from torch import nn

class Segmenter(nn.Module):
    def __init__(self, num_classes, keys):
        super().__init__()
        self.body, self.head, self.keys = nn.Conv2d(2, 8, 3, padding=1), nn.Conv2d(8, num_classes, 1), keys

    def forward(self, x):
        maps = self.head(self.body(x).relu())
        return {key: maps * (place + 1) for place, key in enumerate(self.keys)}

def build(num_classes, keys):
    return Segmenter(num_classes, keys)
"""


@pytest.mark.parametrize("keys", [["out"], ["features", "logits"], ["out", "aux"]])
def test_formats_decide_what_they_take_of_a_mapping_whatever_the_task(
    run: RunDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], keys: Any
) -> None:
    (tmp_path / "segmenter_of_export.py").write_text(SEGMENTER)
    monkeypatch.syspath_prepend(tmp_path)
    fields = {"factory": "segmenter_of_export:build", "num_classes": 3, "input_shape": [2, 8, 8]}
    model_section = {**fields, "options": {"keys": keys}}
    dense = build_model(ModelSection.model_validate(model_section), task=find_task("segmentation"))
    result = api.prune(dense, example(), method="magnitude", ratio=0.5, task="segmentation")
    save_model(result.model, result.plan, run, "models/good-trial")
    run.write_text("study.yaml", yaml.safe_dump({"model": model_section, "task": {"name": "segmentation"}}))
    words = ["export", run.location, "--trial", "good-trial", "--format", "torch_export", "--out"]
    status = main([*words, str(tmp_path / "small.pt2")])
    if keys == ["out", "aux"]:
        assert status == 2
        assert (
            "the model returns a dict of 2 tensors; allowed for format 'torch_export': one" in capsys.readouterr().err
        )
        return
    assert status == 0
    found = torch.export.load(tmp_path / "small.pt2").module()(example(3))
    torch.testing.assert_close(found, result.model(example(3))[keys[-1]], rtol=1e-4, atol=1e-5)


def test_what_is_not_there_is_one_line(run: RunDirectory, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", run.location, "--trial", "not-saved"]) == 2
    line = capsys.readouterr().err
    facts = (f"'{run.location}'", "'not-saved'", "good-trial, poor-trial", "output.save_models: all")
    assert all(fact in line for fact in facts)
    plan = tmp_path / "run" / "models" / "good-trial" / "plan.json"
    plan.write_text(plan.read_text().replace('"ratio": 0.25', '"ratio": 0.35'))
    assert main(["explain", run.location]) == 2
    assert "the plan was changed" in capsys.readouterr().err
    assert main(["explain", str(tmp_path / "nothing")]) == 2
    assert str(tmp_path / "nothing") in capsys.readouterr().err
