"""A run never removes the results of another: they are moved to the run directory's history."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
import small_study as small
import yaml
from rich.console import Console

from cleanai_ray.config.study import parse_study
from cleanai_ray.executors import finished, trial_work
from cleanai_ray.executors.progress import ProgressReporter
from cleanai_ray.executors.run_study import RunOptions, run_study
from cleanai_ray.registry import EXECUTORS
from cleanai_ray.stages.planning import check_study, describe_plan
from cleanai_ray.storage.run_directory import RunDirectory

OUTCOME = ("results.parquet", "layers.parquet", "report.pdf", "report.html", "study.yaml", "environment.json", "charts")


def settings(**changed: Any) -> dict[str, Any]:
    sweep = {"methods": ["random"], "ratios": [0.3], "modes": ["local"]}
    quick = {"finetune": {"epochs": 0}, "evaluation": {"samples": 50, "latency": None}, "sweep": sweep}
    return {**small.SMALL, "name": "first", **quick, **changed}


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The run directory of a study of one trial, and the trial's id."""
    folder = tmp_path_factory.mktemp("first") / "run"
    assert small.run(parse_study(settings()), folder, report=True)[0] == 0
    ((trial_id,),) = ([trial.trial_id for trial in parse_study(settings()).trials()],)
    return folder, trial_id


@pytest.fixture
def held(first: tuple[Path, str], tmp_path: Path) -> tuple[Path, str, dict[str, bytes]]:
    """A copy of the run directory, the trial's id, and the content of the files that must not be lost."""
    folder, trial_id = first
    RunDirectory(folder.parent).copy("run", str(Path("..") / tmp_path.name / "run"))
    run = tmp_path / "run"
    kept = [path for name in OUTCOME for path in ([run / name] if (run / name).is_file() else (run / name).iterdir())]
    exported = run / "exports" / f"{trial_id}.onnx"
    exported.parent.mkdir()
    exported.write_bytes(b"an export")
    kept += [run / "trials" / f"{trial_id}.json", *(run / "models" / trial_id).iterdir(), exported]
    assert len(kept) > len(OUTCOME)
    return run, trial_id, {str(path.relative_to(run)): path.read_bytes() for path in kept}


def moved(run: Path) -> dict[str, bytes]:
    """The files of the one folder of the history."""
    (folder,) = (run / "history").iterdir()
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_another_study_in_a_run_directory_leaves_the_first_ones_results_in_the_history(held: Any) -> None:
    run, trial_id, before = held
    study = parse_study(settings(name="second", sweep={"methods": ["magnitude"], "ratios": [0.3], "modes": ["local"]}))
    summary = describe_plan(study, check_study(study), RunDirectory(run)).summary
    assert any("holds the study 'first'" in line and "history/" in line for line in summary)
    failed, said = small.run(study, run)
    assert failed == 0
    assert before.items() <= moved(run).items()
    place = str(next((run / "history").iterdir()).relative_to(run))
    assert f"the tables and the report of the study 'first' are kept in {run}/{place}" in said
    assert f"1 trial that the study no longer has, or has with other settings, is kept in {run}/{place}" in said
    assert [row["method"] for row in small.timeless_table(run)] == ["magnitude"]
    assert not (run / "trials" / f"{trial_id}.json").exists()


def test_the_results_of_a_study_that_was_changed_stay_in_the_history(held: Any) -> None:
    run, trial_id, before = held
    assert small.run(parse_study(settings(repair={"compensation": "none", "batch_norm": "none"})), run)[0] == 0
    assert before.items() <= moved(run).items()
    assert yaml.safe_load((run / "study.yaml").read_text())["repair"]["compensation"] == "none"
    assert (run / "trials" / f"{trial_id}.json").read_bytes() != before[f"trials/{trial_id}.json"]


def test_a_study_that_grows_keeps_its_trials_and_the_tables_of_before(held: Any) -> None:
    run, trial_id, before = held
    record = run / "trials" / f"{trial_id}.json"
    written = record.stat().st_mtime_ns
    sweep = {"methods": ["random", "magnitude"], "ratios": [0.3], "modes": ["local"]}
    assert small.run(parse_study(settings(sweep=sweep)), run)[0] == 0
    assert record.stat().st_mtime_ns == written
    found = moved(run)
    assert {name for name in before if not name.startswith(("trials/", "exports/"))} <= found.keys()
    assert all(content == before[name] for name, content in found.items() if name in before)
    assert not any(name.startswith(("trials/", "exports/")) for name in found)
    assert len(small.timeless_table(run)) == 2


def test_the_same_study_again_computes_nothing_and_opens_no_executor(
    held: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, _, before = held
    EXECUTORS.names()
    monkeypatch.setitem(EXECUTORS._values, "refusing", None)
    study = parse_study({**settings(), "resources": {"max_concurrent_trials": 2}})
    failed, said = small.run(study, run, "refusing")
    assert failed == 0
    assert "nothing is left to compute" in said
    assert "1 of 1 trials succeeded" in said
    assert not (run / "history").exists()
    assert {name: (run / name).read_bytes() for name in before if name != "study.yaml"} == {
        name: content for name, content in before.items() if name != "study.yaml"
    }


def test_a_report_that_was_left_out_is_made_by_the_same_command_without_the_option(tmp_path: Path) -> None:
    study = parse_study(settings())
    failed, said = small.run(study, tmp_path, report=False)
    assert failed == 0
    assert f"no report was asked for; `cleanai report {tmp_path}` makes it" in said
    assert f"results: {tmp_path} (results.parquet)" in said
    assert not list(tmp_path.glob("report.*"))
    assert json.loads((tmp_path / "status.json").read_text())["state"] == "finished"
    failed, said = small.run(study, tmp_path, report=True)
    assert failed == 0
    assert "1 of 1 trials were complete already" in said
    assert {path.name for path in tmp_path.glob("report.*")} >= {"report.html", "report.pdf"}


def test_a_report_of_earlier_results_does_not_stay_beside_new_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A trial fails and has a report; it succeeds without one; then the report is asked for."""
    study = parse_study(settings())
    with monkeypatch.context() as patch:
        patch.setattr(trial_work, "describe_outcome", _fail)
        assert small.run(study, tmp_path, report=True)[0] == 1
    assert "no such luck" in (tmp_path / "report.html").read_text()
    failed, said = small.run(study, tmp_path, report=False)
    assert failed == 0
    assert "the report and the charts of earlier results are kept in" in " ".join(said.split())
    assert {"report.html", "report.pdf"} <= {Path(name).name for name in moved(tmp_path)}
    assert not list(tmp_path.glob("report.*"))
    failed, said = small.run(study, tmp_path, report=False)
    assert "nothing is left to compute" in said, "without a report that nobody asked for"
    with monkeypatch.context() as patch:
        patch.setattr(finished, "__version__", "another")
        assert "nothing is left" not in small.run(study, tmp_path, report=False)[1], "it may write other columns"
    assert small.run(study, tmp_path, report=True)[0] == 0
    assert "no such luck" not in (tmp_path / "report.html").read_text()
    before = (tmp_path / "report.html").stat().st_mtime_ns
    assert "nothing is left to compute" in small.run(study, tmp_path, report=False)[1]
    assert (tmp_path / "report.html").stat().st_mtime_ns == before


def _fail(*_: Any, **__: Any) -> None:
    raise ValueError("no such luck")


@pytest.mark.parametrize(
    "lost", ["report.html", "results.parquet", "layers.parquet", "correct.parquet", "models", "status.json"]
)
def test_what_is_missing_is_made_again(held: Any, lost: str) -> None:
    run, _, before = held
    RunDirectory(run).delete(lost)
    assert small.run(parse_study(settings()), run, report=True)[0] == 0
    assert (run / lost).exists()
    assert not (run / "history").exists()
    if lost in before and lost.endswith(".parquet"):
        assert (run / lost).read_bytes() == before[lost]


def test_fresh_moves_all_results_and_computes_them_again(held: Any) -> None:
    run, _, before = held
    said, study = io.StringIO(), parse_study(settings())
    options = RunOptions(executor="local", fresh=True)
    progress = ProgressReporter(Console(file=said, width=200))
    assert run_study(study, check_study(study), RunDirectory(run), options, progress) == 0
    assert moved(run).keys() >= before.keys()
    assert before.items() <= moved(run).items()
    printed = " ".join(said.getvalue().split())
    assert "everything is computed again: the earlier results and exports are kept in" in printed
    assert len(small.timeless_table(run)) == 1


def test_two_runs_of_the_same_second_have_folders_of_their_own(held: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from cleanai_ray.executors import history

    class Frozen(history.datetime.datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return cls(2026, 1, 2, 3, 4, 5, tzinfo=tz)

    monkeypatch.setattr(history.datetime, "datetime", Frozen)
    run = RunDirectory(held[0])
    progress = ProgressReporter(Console(file=io.StringIO()))
    for content in ("one", "two"):
        run.write_text("results.parquet", content)
        history.History(run, progress).clear()
    assert run.list("history") == ["2026-01-02T03-04-05", "2026-01-02T03-04-05-2"]
    assert run.read_text("history/2026-01-02T03-04-05-2/results.parquet") == "two"


def test_a_study_without_a_directory_has_its_own() -> None:
    assert parse_study(settings()).output.dir == "artifacts/first"
    assert parse_study({**settings(), "output": {"save_models": "all"}}).output.dir == "artifacts/first"
    assert parse_study({**settings(), "output": {"dir": "there"}}).output.dir == "there"
