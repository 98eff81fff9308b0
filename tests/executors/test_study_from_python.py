"""Studies from Python: run one, open it again, and read its answers."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
import yaml
from small_study import SMALL

import cleanai_ray as cleanai
from cleanai_ray.config.study import parse_study
from cleanai_ray.errors import ArtifactError, RegistryError, StudyError
from cleanai_ray.stages.study_run import StudyRun
from cleanai_ray.storage.run_directory import RunDirectory

RESEARCH = Path(__file__).resolve().parents[2] / "artifacts" / "research_fashion_mnist"


def settings() -> dict[str, Any]:
    study = copy.deepcopy(SMALL)
    study["sweep"] = {"methods": ["magnitude", "random"], "ratios": [0.3]}
    study["finetune"] = {"epochs": 0}
    study["evaluation"]["latency"] = None
    study["output"] = {"save_models": "all"}
    return study


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("python") / "run: 1"  # a name that YAML would read otherwise


@pytest.fixture(scope="module")
def run(folder: Path) -> StudyRun:
    given = settings()
    found = cleanai.run(given, out=folder, executor="local", progress=False)
    assert given == settings()
    return found


def test_a_study_runs_and_its_trials_are_a_frame(run: StudyRun, folder: Path) -> None:
    assert run.location == str(folder)
    assert (folder / "report.pdf").exists()
    assert run.trials["method"].to_list() == ["magnitude", "random"]
    assert run.trials["status"].to_list() == ["ok", "ok"]
    assert run.trials.equals(cleanai.load_run(folder).trials)
    assert repr(run).startswith("StudyRun(small: 2 trials, 0 failed, dense accuracy ")
    assert [row[0] for row in run.summary().grids[0].rows] == run.frames.ranked["trial_id"].to_list()


def test_the_models_of_its_trials_can_be_loaded(run: StudyRun) -> None:
    assert run.best is not None
    names = [str(run.best["trial_id"]), *run.trials["trial_id"]]
    for name, asked in zip(names, ["best", *names[1:]], strict=True):
        row = run.trials.filter(pl.col("trial_id") == name).row(0, named=True)
        model = run.model(asked)
        assert not model.training
        assert sum(value.numel() for value in model.parameters()) == row["params"]
        assert run.plan(asked).achieved["macs"] == row["macs"]
        assert model(torch.zeros(2, 1, 8, 8)).shape == (2, 10)
    with pytest.raises(ArtifactError, match=r"no model of trial 'other'; saved: "):
        run.model("other")


def test_the_recommended_trial_has_the_name_that_the_command_line_gives_it(run: StudyRun, tmp_path: Path) -> None:
    """It is the best one, or there is none and the message says why."""
    if run.frames.choice.is_recommended:
        assert run.plan("recommended").to_json() == run.plan("best").to_json()
    else:
        with pytest.raises(ArtifactError, match=r"has no recommended trial .*`best` has one"):
            run.plan("recommended")
    limited = RunDirectory(shutil.copytree(run.location, tmp_path / "limited"))
    document = yaml.safe_load(limited.read_text("study.yaml"))
    limited.write_text("study.yaml", yaml.safe_dump({**document, "recommend": {"max_params": 0.001}}))
    with pytest.raises(ArtifactError, match=r"has no recommended trial"):
        cleanai.load_run(limited.location).model("recommended")


@pytest.mark.parametrize("form", ["file", "text", "study", "overrides"])
def test_a_study_is_taken_in_every_form(run: StudyRun, folder: Path, form: str, tmp_path: Path) -> None:
    """All are the same study, so that nothing is left to compute."""
    file = tmp_path / "study.yaml"
    file.write_text(yaml.safe_dump(settings()))
    other = settings() | {"name": "other"}
    forms: dict[str, Any] = {"file": file, "text": str(file), "study": parse_study(settings()), "overrides": other}
    before = (folder / "results.parquet").stat().st_mtime_ns
    overrides = ["name=small"] if form == "overrides" else []
    again = cleanai.run(forms[form], out=folder, executor="local", overrides=overrides, progress=False)
    assert again.trials.equals(run.trials)
    assert (folder / "results.parquet").stat().st_mtime_ns == before


def test_what_a_run_prints_can_be_turned_off(run: StudyRun, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cleanai.run(settings(), out=folder, executor="local", progress=False)
    assert capsys.readouterr().out == ""
    cleanai.run(settings(), out=folder, executor="local")
    assert "2 of 2 trials succeeded" in capsys.readouterr().out


def test_the_report_can_be_left_out(tmp_path: Path) -> None:
    found = cleanai.run(settings(), out=tmp_path, executor="local", progress=False, report=False)
    assert found.trials["status"].to_list() == ["ok", "ok"]
    assert not [path.name for path in tmp_path.iterdir() if path.name.startswith(("report", "charts"))]


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(StudyError, match="executor is 'slurm'; allowed: local, ray"):
        cleanai.run(settings(), executor="slurm")
    with pytest.raises(StudyError, match="study is a list; allowed: a path, nested dicts, or a parsed study"):
        cleanai.run([], executor="local")  # type: ignore[arg-type]
    with pytest.raises(StudyError, match=r"sweep\.methods"):
        cleanai.run(settings() | {"sweep": {"methods": ["magic"], "ratios": [0.5]}}, executor="local")
    with pytest.raises(ArtifactError, match=r"holds no results\.parquet"):
        cleanai.load_run("nowhere")


def test_an_analysis_says_what_the_report_says() -> None:
    found = cleanai.analyse(RESEARCH)
    assert len(found.frames.results) == 936
    assert {answer.verdict for answer in found.answers} <= {"yes", "no", "cannot tell"}
    assert len(found.answers) == 12
    assert repr(found) == f"StudyAnalysis({found.frames.name}: 12 answers, {len(found.risks)} risks)"
    questions, risks = found.summary().grids
    assert [row[0] for row in questions.rows] == [answer.question for answer in found.answers]
    assert len(risks.rows) == len(found.risks)
    assert found.recommendation.sentence in found.summary().notes
    chart = found.chart("accuracy_macs")
    assert chart is not None
    assert chart.to_dict()["config"]["background"] == "white"
    with pytest.raises(RegistryError, match="accuracy_macs"):
        found.chart("nothing")


def test_an_analysis_takes_a_run_or_its_folder(run: StudyRun, folder: Path) -> None:
    by_run, by_folder = cleanai.analyse(run), cleanai.analyse(folder)
    assert by_run.frames is run.frames
    assert by_run.answers == by_folder.answers
