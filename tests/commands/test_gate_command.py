"""`cleanai gate`: exit code and one sentence."""

from __future__ import annotations

from pathlib import Path

import pytest
from report import synthetic

from cleanai_ray.cli import main


def test_the_exit_code_is_the_outcome(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tables = synthetic.make(methods=("wanda", "random"), ratios=(0.3,), modes=("local",))
    for row in tables.results:
        row |= {"lost": 100, "gained": 60, "speedup_b1": 1.8, "speedup_b1_low": 1.7, "speedup_b1_high": 1.9}
    run = tables.write(tmp_path / "run").location
    for words, code, outcome in (
        (["--max-loss", "3", "--min-speedup", "1.5"], 0, "Gate passed: "),
        (["--max-loss", "0.3"], 1, "Gate not passed: "),
        (["--min-speedup", "1.75"], 1, "Gate not passed: "),
        (["--min-speedup", "1.75", "--trial", "best"], 1, "Gate not passed: "),
    ):
        assert main(["gate", run, *words]) == code
        captured = capsys.readouterr()
        assert captured.out.startswith(outcome)
        assert captured.out.count("\n") == 1
        assert captured.err == ""


@pytest.mark.parametrize("state", ["running", "failed"])
def test_tables_of_an_earlier_run_are_not_judged(
    state: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tables = synthetic.make(methods=("wanda",), ratios=(0.3,), modes=("local",))
    for row in tables.results:
        row |= {"lost": 0, "gained": 60}
    run = tables.write(tmp_path / "run")
    assert main(["gate", run.location, "--max-loss", "5"]) == 0
    status = {
        "study": "s",
        "state": state,
        "started": "2030-01-01T00:00:00+00:00",
        "updated": "2030-01-01T00:00:00+00:00",
        **dict.fromkeys(("trials_total", "trials_done", "trials_failed"), 1),
    }
    run.write_json("status.json", status)
    capsys.readouterr()
    assert main(["gate", run.location, "--max-loss", "5"]) == 1
    assert f"the last run in {run.location} is {state}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "fact"),
    [([], "--max-loss"), (["--max-loss", "-1"], "--max-loss"), (["--max-loss", "1", "--trial", "none"], "'none'")],
)
def test_a_wrong_gate_is_no_outcome(
    words: list[str], fact: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = synthetic.make(methods=("wanda",), ratios=(0.3,), modes=("local",)).write(tmp_path / "run").location
    assert main(["gate", run, *words]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert fact in captured.err
