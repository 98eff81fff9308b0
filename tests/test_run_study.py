from __future__ import annotations

import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent


def run_study(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "jobs/run_study.py", *arguments]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)


def test_the_job_of_a_study_that_is_wrong_ends_with_2_and_one_line(tmp_path: Path) -> None:
    study = tmp_path / "study.yaml"
    study.write_text((REPOSITORY / "jobs" / "studies" / "quickstart.yaml").read_text())
    done = run_study("--study", str(study), "--out", str(tmp_path / "run"), "--set", "sweep.ratios=[1.5]")
    assert done.returncode == 2
    (line,) = done.stderr.strip().splitlines()
    assert "sweep.ratios[0] is 1.5; allowed: a number above 0 and below 1" in line
    assert not (tmp_path / "run").exists()


def test_the_job_of_a_study_that_is_missing_names_the_file(tmp_path: Path) -> None:
    done = run_study("--study", str(tmp_path / "absent.yaml"))
    assert done.returncode == 2
    assert f"study file '{tmp_path / 'absent.yaml'}' cannot be read" in done.stderr


def test_a_job_without_a_study_says_how_it_is_used() -> None:
    done = run_study()
    assert done.returncode == 2
    assert "--study" in done.stderr
