"""The line of progress: where it is shown, what it counts, and that nothing is printed where nobody watches."""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from rich.console import Console
from small_nets import batches, build, example

import cleanai_ray as cleanai
from cleanai_ray.display import progress as module
from cleanai_ray.display.progress import current, shown, watched, with_progress


class Recorder(module.ProgressLine):
    """A line that keeps what it is told."""

    def __init__(self) -> None:
        super().__init__()
        self.stages: list[tuple[str, int | None]] = []
        self.steps: list[int] = []
        self.words: list[str] = []

    def __bool__(self) -> bool:
        return True

    def begin(self, stage: str, total: int | None = None) -> None:
        self.stages.append((stage, total))
        self.steps.append(0)

    def rename(self, stage: str) -> None:
        self.words.append(stage)

    def advance(self) -> None:
        self.steps[-1] += 1


@pytest.fixture
def line() -> Iterator[Recorder]:
    recorder = Recorder()
    token = module._SHOWN.set(recorder)
    yield recorder
    module._SHOWN.reset(token)


def terminal() -> Console:
    return Console(file=io.StringIO(), force_terminal=True, force_interactive=True, width=100)


def printed(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_items_are_counted_each_time_they_are_read(line: Recorder) -> None:
    items = watched("reading", [7, 8, 9])
    assert [list(items), list(items)] == [[7, 8, 9], [7, 8, 9]]
    assert line.stages == [("reading", 3), ("reading", 3)]
    assert line.steps == [3, 3]


def test_an_iterator_stays_one_and_has_no_total(line: Recorder) -> None:
    items = watched("reading", (number for number in (7, 8)))
    assert isinstance(items, Iterator)
    assert list(items) == [7, 8]
    assert line.stages == [("reading", None)]
    assert line.steps == [2]


def test_where_no_line_is_shown_items_are_left_as_they_are() -> None:
    items = [1, 2]
    assert not current()
    assert watched("reading", items) is items
    current().begin("nothing", 3)
    current().advance()
    current().rename("nothing")


@pytest.mark.parametrize(("progress", "watching", "is_shown"), [
    (None, True, True),
    (None, False, False),
    (True, True, True),
    (True, False, True),
    (False, True, False),
])  # fmt: skip
def test_a_line_is_shown_where_somebody_watches_or_asks(progress: Any, watching: bool, is_shown: bool) -> None:
    console = terminal() if watching else Console(file=io.StringIO(), width=100)
    with shown("counting", progress, console):
        assert bool(current()) == is_shown
        assert list(watched("reading", [1, 2])) == [1, 2]
    assert not current()
    assert bool(printed(console)) == is_shown
    assert ("2/2" in printed(console)) == (is_shown and watching)


def test_a_notebook_needs_widgets_to_show_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    console = Console(file=io.StringIO(), force_jupyter=True)
    for found, expected in ((None, False), (object(), True)):
        monkeypatch.setattr(module.importlib.util, "find_spec", lambda name, found=found: found)
        assert module._is_watched(console) == expected


def test_there_is_one_line_at_a_time() -> None:
    console = terminal()
    with shown("outer", True, console):
        outer = current()
        with shown("inner", True, console):
            assert current() is outer
        assert current() is outer


def test_a_decorated_function_gets_every_argument_but_progress(capsys: pytest.CaptureFixture[str]) -> None:
    @with_progress("adding")
    def add(first: int, *, second: int, progress: bool | None = None) -> int:
        """Add."""
        return first + second

    assert [add(1, second=2), add(1, second=2, progress=False), add.__doc__] == [3, 3, "Add."]
    assert capsys.readouterr() == ("", "")


def test_calibration_counts_its_batches(line: Recorder) -> None:
    cleanai.calibrate(build("plain"), batches(), sections=4)
    assert line.stages == [("calibration", 3), ("calibration", 3)]  # the second pass counts in bins
    assert line.steps == [3, 3]


def test_pruning_names_its_stages(line: Recorder) -> None:
    cleanai.prune(build("residual"), example(), batches(), method="reconstruction", ratio=0.4, repair=True)
    names = [stage for stage, _ in line.stages]
    assert list(dict.fromkeys(names)) == ["sensitivity", "pruning", "repair"]
    assert line.stages[0] == ("sensitivity", 3)
    assert line.steps[0] == 3


def test_fine_tuning_counts_the_batches_of_all_epochs(line: Recorder) -> None:
    cleanai.fine_tune(build("plain"), batches(), batches()[:1], epochs=2, learning_rate=0.01)
    assert line.stages == [("fine-tuning", 6)]
    assert line.steps == [6]
    assert [words.partition(":")[0] for words in line.words] == [
        f"fine-tuning, after epoch {epoch}" for epoch in (1, 2)
    ]
    assert all("validation accuracy" in words for words in line.words)


@pytest.mark.parametrize("progress", [None, False])
def test_nothing_is_printed_where_nobody_watches(progress: bool | None, capfd: pytest.CaptureFixture[str]) -> None:
    model, data = build("residual"), batches()
    cleanai.calibrate(model, data, progress=progress)
    cleanai.prune(model, example(), data, ratio=0.4, repair=True, progress=progress)
    cleanai.fine_tune(model, data, data[:1], epochs=1, progress=progress)
    assert capfd.readouterr() == ("", "")


def test_results_are_the_same_with_a_line(capfd: pytest.CaptureFixture[str]) -> None:
    options: dict[str, Any] = {"method": "wanda", "ratio": 0.4, "repair": True}
    plain, watched_one = (
        cleanai.prune(build("residual"), example(), batches(), **options, progress=progress)
        for progress in (False, True)
    )
    assert plain.plan == watched_one.plan
    other = watched_one.model.state_dict()
    assert all(torch.equal(value, other[name]) for name, value in plain.model.state_dict().items())
    assert capfd.readouterr().out == ""  # the line goes to the standard error


def test_the_line_is_on_the_standard_error_of_a_script() -> None:
    code = "from cleanai_ray.display.progress import shown\nwith shown('counting', True): print('done')"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "done\n"
