"""Help, version and completion, and what they load."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cleanai_ray import __version__
from cleanai_ray.cli import COMMANDS, LineFormatter, main
from cleanai_ray.commands.names import KINDS


def cleanai(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "cleanai_ray", *words]
    return subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **environment})


@pytest.mark.parametrize("words", [[], ["--help"]])
def test_without_a_command_the_help_lists_all(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    assert captured.out == captured.out.rstrip() + "\n", "no empty line at the end"
    lines = [line.split(maxsplit=1) for line in captured.out.splitlines()]
    assert [name for name, (_, text) in COMMANDS.items() if [name, text] not in lines] == [], "none is cut off"


@pytest.mark.parametrize(
    ("name", "level", "text"),
    [
        ("cleanai_ray.nn.notices", logging.WARNING, "note: 3 of 5"),
        ("cleanai_ray.executors.trial_work", logging.ERROR, "ERROR cleanai_ray.executors.trial_work: 3 of 5"),
        ("matplotlib", logging.WARNING, "WARNING matplotlib: 3 of 5"),
    ],
)
def test_what_the_package_notes_is_a_plain_line(name: str, level: int, text: str) -> None:
    record = logging.LogRecord(name, level, "", 0, "%d of %d", (3, 5), None)
    assert LineFormatter("%(levelname)s %(name)s: %(message)s").format(record) == text


def test_the_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"cleanai {__version__}\n"


@pytest.mark.parametrize("command", COMMANDS)
def test_a_flag_is_shown_as_a_flag(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "--help"]) == 0
    text = capsys.readouterr().out
    assert "bool" not in text.lower()
    if command == "run":
        assert "--fresh" in text


def test_help_loads_what_it_shows_and_nothing_that_computes() -> None:
    program = (
        "import contextlib, io, sys\n"
        "from cleanai_ray.cli import main\n"
        "with contextlib.redirect_stdout(io.StringIO()):\n"
        "    assert main(['--help']) == 0\n"
        "print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    own = {name for name in loaded if name.startswith("cleanai_ray.") and not name.startswith("cleanai_ray.commands")}
    assert own == {
        "cleanai_ray.cli",
        "cleanai_ray.errors",
        "cleanai_ray.executors",
        "cleanai_ray.executors.reserved_options",
    }
    slow = {"torch", "ray", "numpy", "pyarrow", "polars", "pydantic", "yaml", "scipy", "jinja2", "http.server"}
    assert not slow & loaded


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("cleanai pl", {"plan"}),
        ("cleanai s", {"status", "sensitivity", "submit", "schema"}),
        ("cleanai list ", set(KINDS)),
        ("cleanai run --fr", {"--fresh"}),
    ],
)
def test_bash_completes(line: str, expected: set[str]) -> None:
    words = line.split(" ")
    done = cleanai(_CLEANAI_COMPLETE="complete_bash", COMP_WORDS=line, COMP_CWORD=str(len(words) - 1))
    assert done.returncode == 0, done.stderr
    assert set(done.stdout.split()) == expected


def test_trials_are_completed_from_the_models_that_are_saved(tmp_path: Path) -> None:
    (tmp_path / "models" / "wanda-1").mkdir(parents=True)
    for typed, expected in (("", {"recommended", "best", "wanda-1"}), ("wa", {"wanda-1"})):
        line = f"cleanai explain {tmp_path} --trial {typed}"
        done = cleanai(_CLEANAI_COMPLETE="complete_bash", COMP_WORDS=line, COMP_CWORD="4")
        assert set(done.stdout.split()) == expected, done.stderr


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_of_a_shell_is_shown(shell: str) -> None:
    done = cleanai("--show-completion", shell, _TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION="1")
    assert done.returncode == 0, done.stderr
    assert f"_CLEANAI_COMPLETE=complete_{shell}" in done.stdout
