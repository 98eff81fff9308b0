"""The second edition of the research study: how its runs are gathered, and what the documentation says of them."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml
from report.joint_runs import Planted, write_runs

from cleanai_ray.config.study import load_study
from cleanai_ray.report.joint import read_findings
from cleanai_ray.storage.run_directory import RunDirectory

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "jobs"))
import second_edition

REPOSITORY = second_edition.REPOSITORY
HOME = REPOSITORY / second_edition.HOME


def test_the_study_files_are_the_nine_runs() -> None:
    studies = [
        load_study(str(REPOSITORY / "jobs" / "studies" / f"research_second_edition_{name}.yaml"))
        for name in dict.fromkeys(name.rpartition("_")[0] for name in second_edition.NAMES)
    ]
    assert len(studies) * 3 == len(second_edition.NAMES) == 9
    assert {len(study.trials()) for study in studies} == {3 * 3 * (5 + 2) + 1 + 1 + 1 + 3 * 3}
    assert {study.questions.primary for study in studies} == {"b1"}
    # But for the network, they are one study.
    rest = [study.model_dump(exclude={"name", "question", "model", "output"}) for study in studies]
    assert rest[0] == rest[1] == rest[2]


def test_the_documentation_says_what_the_committed_runs_say() -> None:
    text = (REPOSITORY / second_edition.DOCUMENT).read_text(encoding="utf-8")
    places = second_edition.folders(HOME)
    findings = read_findings([RunDirectory(place) for place in places], 9) if len(places) > 1 else None
    assert text == second_edition.in_document(text, second_edition.markdown(findings, len(places)))


def test_what_is_committed_is_small_and_names_no_folder_of_a_machine() -> None:
    files = [file for file in HOME.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) < 6e6
    for place in second_edition.folders(HOME):
        assert second_edition.lacks(place) == ""
        record = json.loads((place / "environment.json").read_text())
        assert {"weights", "images"} <= set(record["digests"])
        assert record["commit"]
        for name in ("study.yaml", "environment.json"):
            assert second_edition.without_paths((place / name).read_text()) == (place / name).read_text()


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Two runs as a study leaves them, and one that has just begun."""
    folder = tmp_path / "runs"
    first, second, third = write_runs(folder, Planted(num_images=60), networks=("resnet20",), trainings=3)
    (third / "images.parquet").unlink()
    for number, place in enumerate((first, second, third)):
        study = yaml.safe_load((place / "study.yaml").read_text())
        study |= {"output": {"dir": "/somewhere/else/run"}}
        (place / "study.yaml").write_text(yaml.safe_dump(study))
        record = json.loads((place / "environment.json").read_text())
        record |= {"command": f"cleanai run /a/b/study.yaml --out /c/d/run{number}", "node": "secret"}
        (place / "environment.json").write_text(json.dumps(record))
        place.rename(folder / f"resnet20_seed{number}")
    return folder


def test_runs_that_are_whole_are_gathered_and_the_others_are_named(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(second_edition, "lacks", lambda run: "" if run.name[-1] < "2" else f"{run.name}: no images")
    data = tmp_path / "data"
    data.mkdir()
    (data / "t10k.gz").write_bytes(b"images")
    home, document = tmp_path / "home", tmp_path / "research.md"
    document.write_text("before\n<!-- second edition -->\nold\n<!-- end of second edition -->\nafter\n")
    missing = second_edition.gather(runs, home, data)
    assert missing[0] == "resnet20_seed2: no images"
    assert missing[1:] == [f"{name}: not begun" for name in second_edition.NAMES[3:]]
    place = home / "resnet20_seed0"
    for name in second_edition.TABLES:
        assert pq.read_table(place / name).equals(pq.read_table(runs / "resnet20_seed0" / name))
    record = json.loads((place / "environment.json").read_text())
    assert record["command"] == "cleanai run study.yaml --out run0"
    assert record["data"] == {"t10k.gz": second_edition.digest(data / "t10k.gz")}
    assert "node" not in record
    assert yaml.safe_load((place / "study.yaml").read_text())["output"]["dir"] == f"{second_edition.HOME}/{place.name}"
    assert second_edition.report(home, document) == 2
    assert sorted(file.name for file in home.iterdir()) == ["report.pdf", "resnet20_seed0", "resnet20_seed1"]
    text = document.read_text()
    assert text.startswith("before\n<!-- second edition -->\n\nRuns that are in: 2 of 9 planned runs: resnet20")
    assert text.endswith("<!-- end of second edition -->\nafter\n")
    assert "| MACs \N{LESS-THAN OR EQUAL TO} 70 % | coverage against magnitude | " in text
    assert "told on the test images that decided nothing, though of the same trainings and draws:" in text


def test_a_run_is_whole_when_all_its_trials_have_succeeded(tmp_path: Path) -> None:
    assert second_edition.lacks(tmp_path) == f"{tmp_path.name}: no results.parquet yet"
