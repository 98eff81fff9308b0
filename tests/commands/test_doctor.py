"""`cleanai doctor` tells what is there, and ends with 1 where something necessary is not."""

from __future__ import annotations

from pathlib import Path

import pytest
from packaging.requirements import Requirement

from cleanai_ray import __version__
from cleanai_ray.cli import main
from cleanai_ray.commands import doctor
from cleanai_ray.commands.requirements import EXTRAS, NECESSARY, version_of

tomllib = pytest.importorskip("tomllib")
PROJECT = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
NOT_TOLD = {"dev", "docs", "all", "hub"}  # developers', and those that are made of others


def names(requirements: list[str]) -> set[str]:
    return {Requirement(line).name for line in requirements}


def test_the_packages_are_those_that_the_project_declares() -> None:
    assert set(NECESSARY) == names(PROJECT["dependencies"])
    declared = {name: names(lines) for name, lines in PROJECT["optional-dependencies"].items()}
    assert {name: set(extra.distributions) for name, extra in EXTRAS.items()} == {
        name: found for name, found in declared.items() if name not in NOT_TOLD
    }


def test_what_is_here_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    text = capsys.readouterr().out
    assert text.splitlines()[-1] == "nothing necessary is missing"
    for fact in (__version__, version_of("torch"), version_of("ray"), str(Path.cwd()), "GiB free", "[onnx]"):
        assert str(fact) in text


def test_what_is_necessary_and_missing_ends_with_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(doctor, "version_of", lambda name: None if name in ("polars", "onnx") else version_of(name))
    assert main(["doctor"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "necessary and missing: polars"
    (extra,) = (line for line in lines if "[onnx]" in line and line.startswith("note"))
    assert "pip install 'cleanai-ray[onnx]'" in extra


def test_every_module_is_looked_for_under_its_own_name() -> None:
    assert [name for name in NECESSARY if version_of(name) in (None, "of unknown version")] == []
    assert version_of("no-such-distribution") is None


@pytest.mark.parametrize(("is_necessary", "state"), [(True, "lacks"), (False, "note")])
def test_a_place_that_cannot_be_written_to(tmp_path: Path, is_necessary: bool, state: str) -> None:
    (tmp_path / "file").write_text("")
    found = doctor._place("a place", tmp_path / "file" / "folder", is_necessary=is_necessary)
    assert found.state == state
    assert "not writable" in found.text
    assert doctor._place("a place", tmp_path / "not" / "yet", is_necessary=True).state == "ok"
