"""What `cleanai explain` finds in a run directory, and what it says where there is nothing to find."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_nets import build, example

from cleanai_ray import api
from cleanai_ray.cli import main
from cleanai_ray.pruning.plan import PruningPlan
from cleanai_ray.storage import schemas
from cleanai_ray.storage.run_directory import RunDirectory

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
