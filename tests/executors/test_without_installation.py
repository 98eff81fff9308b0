"""A study where the package is a folder and not installed, and a run whose report fails."""

from __future__ import annotations

import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import small_study as small
import yaml
from executors.uninstalled import python_without_package

import cleanai_ray
from cleanai_ray.config.study import parse_study
from cleanai_ray.errors import ReportError
from cleanai_ray.executors import run_record
from cleanai_ray.executors import run_study as study_runner
from cleanai_ray.executors.progress import ProgressReporter
from cleanai_ray.executors.run_study import RunOptions, run_study
from cleanai_ray.stages import environment
from cleanai_ray.stages.planning import check_study
from cleanai_ray.storage.run_directory import RunDirectory

TINY: dict[str, Any] = {
    "name": "tiny",
    "model": {"name": "resnet20", "num_classes": 10, "input_shape": [1, 8, 8], "train": {"epochs": 1}},
    "data": {"name": "digits", "calibration": {"samples": 64}},
    "sweep": {"methods": ["magnitude"], "ratios": [0.3], "modes": ["local"]},
    "repair": {"compensation": "none", "batch_norm": "none"},
    "evaluation": {"samples": 100, "latency": None},
    "output": {"dir": "run", "save_models": "none"},
}
BROKEN_CHART = """
from cleanai_ray.registry import CHARTS


@CHARTS.register("broken")
def broken(study):
    \"\"\"A chart that cannot be drawn.\"\"\"
    raise OverflowError("no such font")
"""


class Site:
    """A folder with a copy of the package, a study, and a Python that knows neither otherwise."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "user"
        self.run = self.folder / "run"
        (folder / "python").mkdir()
        self.python = python_without_package(folder / "python", "reportlab-")
        copy = shutil.ignore_patterns("__pycache__")
        shutil.copytree(Path(cleanai_ray.__file__).parent, self.folder / "cleanai_ray", ignore=copy)
        (self.folder / "tiny.yaml").write_text(yaml.safe_dump(TINY))
        (self.folder / "broken_chart.py").write_text(BROKEN_CHART)

    def call(self, *words: str) -> subprocess.CompletedProcess[str]:
        variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        command = [str(self.python), *words]
        return subprocess.run(command, cwd=self.folder, env=variables, capture_output=True, text=True, check=False)

    def study(self, *words: str) -> subprocess.CompletedProcess[str]:
        return self.call("-m", "cleanai_ray", "run", "tiny.yaml", "--executor", "local", *words)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    """A folder in which the study has run once."""
    made = Site(tmp_path_factory.mktemp("site"))
    done = made.study()
    assert done.returncode == 0, done.stdout + done.stderr
    return made


def test_a_study_gets_its_report_where_the_package_is_a_folder(site: Site) -> None:
    asked = "import importlib.metadata as m, cleanai_ray; print(cleanai_ray.__file__); m.version('cleanai-ray')"
    done = site.call("-c", asked)
    assert done.stdout.strip() == str(site.folder / "cleanai_ray" / "__init__.py")
    assert "PackageNotFoundError" in done.stderr
    assert (site.run / "report.html").stat().st_size > 0
    assert (site.run / "report.pdf").stat().st_size > 0
    record = json.loads((site.run / "environment.json").read_text())
    assert record["version"] == cleanai_ray.__version__
    assert record["packages"]["reportlab"] is None, "importable, and without metadata"
    assert record["packages"]["torch"] == importlib.metadata.version("torch")
    assert "None" not in (site.run / "report.html").read_text().partition("Where and with what")[2].partition("<h")[0]


def test_a_chart_that_raises_costs_itself_and_nothing_else(site: Site) -> None:
    before = sorted(path.name for path in (site.run / "charts").iterdir())
    (site.run / "report.pdf").unlink()
    (site.run / "results.parquet").unlink()
    done = site.study("--set", "plugins=[broken_chart]")
    assert done.returncode == 1
    (line,) = done.stderr.strip().splitlines()
    for word in ("report lacks chart 'broken' (OverflowError: no such font)", "tables", "cleanai report run"):
        assert word in line
    assert "1 of 1 trials succeeded" in done.stdout
    assert "results: run (report.pdf, report.html, results.parquet)" in done.stdout
    assert sorted(path.name for path in (site.run / "charts").iterdir()) == before
    assert pl.read_parquet(site.run / "results.parquet")["status"].to_list() == ["ok"]
    assert json.loads((site.run / "status.json").read_text())["state"] == "failed"


def test_the_record_is_there_before_the_first_stage_and_grows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study, records = parse_study({**TINY, "output": {"dir": str(tmp_path), "save_models": "none"}}), []

    class Watching(ProgressReporter):
        def stage(self, name: str) -> Any:
            records.append((name, json.loads((tmp_path / run_record.RECORD_FILE).read_text())))
            return super().stage(name)

    workspace, run, options = check_study(study), RunDirectory(tmp_path), RunOptions(executor="local", command="typed")
    monkeypatch.setitem(sys.modules, "cleanai_ray.report", None)
    with pytest.raises(ReportError, match=r"the report could not be made .*cleanai_ray\.report.*; the tables are in"):
        run_study(study, workspace, run, options, Watching())
    assert [name for name, _ in records] == ["dense model", "report"]
    first, last = (record for _, record in records)
    assert (first["command"], first["executor"], first["version"]) == ("typed", "local", cleanai_ray.__version__)
    assert first["samples"]["calibration"] == 64
    assert set(first["digests"]) == {"study"}
    assert set(last["digests"]) == {"study", "weights", "calibration", "images"}
    assert last["seconds"] > 0
    assert last["trials_complete_before"] == 0
    assert first["earlier_runs"] == []
    assert pl.read_parquet(tmp_path / "results.parquet")["status"].to_list() == ["ok"]


def test_the_records_of_earlier_runs_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of one that was interrupted, too, whose outputs the next one reuses."""
    study, run = parse_study({**TINY, "output": {"dir": str(tmp_path), "save_models": "none"}}), RunDirectory(tmp_path)
    monkeypatch.setitem(sys.modules, "cleanai_ray.report", None)

    def record_of(command: str, error: type[BaseException], *, fresh: bool = False) -> dict[str, Any]:
        options = RunOptions(executor="local", command=command, fresh=fresh)
        with pytest.raises(error):
            run_study(study, check_study(study), run, options, ProgressReporter())
        return run.read_json(run_record.RECORD_FILE)

    with monkeypatch.context() as patch:
        patch.setattr(study_runner, "run_sweep", _interrupt)
        first = record_of("first", KeyboardInterrupt)
    second = record_of("second", ReportError)
    third = record_of("third", ReportError)
    assert first["earlier_runs"] == []
    del first["earlier_runs"]
    assert second.pop("earlier_runs") == [first]
    assert third["earlier_runs"] == [first, second]
    assert [run.get("seconds") is None for run in third["earlier_runs"]] == [True, False]
    (tmp_path / run_record.RECORD_FILE).write_text("{")
    assert record_of("fourth", ReportError)["earlier_runs"] == []
    assert record_of("fifth", ReportError, fresh=True)["earlier_runs"] == []


def _interrupt(*arguments: Any) -> None:
    raise KeyboardInterrupt


def test_without_vl_convert_only_the_charts_are_missing(
    small_run: tuple[Any, Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study, folder, _ = small_run
    shutil.copytree(folder, tmp_path / "run")
    monkeypatch.setitem(sys.modules, "vl_convert", None)
    run = RunDirectory(tmp_path / "run")
    run.delete("report.html")  # which is made again for it
    options = RunOptions(executor="local")
    with pytest.raises(ReportError) as caught:
        run_study(study, check_study(study), run, options, ProgressReporter())
    assert str(caught.value).count("ModuleNotFoundError") == 1, "one reason, told once"
    assert " more (ModuleNotFoundError: import of vl_convert halted" in str(caught.value)
    assert not list((tmp_path / "run" / "charts").glob("*.svg"))
    assert b"%PDF" in (tmp_path / "run" / "report.pdf").read_bytes()[:8]
    assert "Every trial" in (tmp_path / "run" / "report.html").read_text()
    assert small.timeless_table(tmp_path / "run") == small.timeless_table(folder)


def test_a_study_starts_without_what_only_reports_need(site: Site) -> None:
    modules = "cleanai_ray.cli, cleanai_ray.executors.run_study, cleanai_ray.executors.sensitivity"
    loaded = site.call("-c", f"import sys, {modules}; print(*sys.modules)")
    assert loaded.returncode == 0, loaded.stderr
    assert not {"altair", "vl_convert", "reportlab", "pypdf", "jinja2"} & set(loaded.stdout.split())


def test_a_version_without_metadata_is_none() -> None:
    assert environment._version_of("torch") == importlib.metadata.version("torch")
    assert environment._version_of("no-such-distribution") is None
