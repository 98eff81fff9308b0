"""The zoo: architectures of torchvision, of transformers and of our own, each tried in a process of its own."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import table
from zoo_architectures import KEEPS, PRUNED, Architecture
from zoo_list import ARCHITECTURES
from zoo_processes import run_alone
from zoo_trial import EXACT, try_architecture

IN_TESTS = [each for each in ARCHITECTURES if each.source != "timm" and each.expected]


def test_the_zoo_has_eighty_architectures_that_are_told_apart() -> None:
    assert len(ARCHITECTURES) >= 80
    assert max(Counter(map(table.key_of, ARCHITECTURES)).values()) == 1


@pytest.mark.slow
@pytest.mark.parametrize("architecture", IN_TESTS, ids=table.key_of)
def test_an_architecture_is_pruned_exactly_or_keeps_what_it_is_expected_to(architecture: Architecture) -> None:
    if architecture.source != "own":
        pytest.importorskip(architecture.source)
    found = run_alone(try_architecture, architecture)
    assert "ended" not in found, found
    if architecture.expected not in (PRUNED, KEEPS):
        assert (found["outcome"], architecture.expected in found["told"]) == ("refused", True), found
        return
    assert (found["outcome"], found["loads"]) == (architecture.expected, "yes"), found
    assert found["error"] < EXACT


def sleeping(architecture: Architecture, note: Any) -> None:
    note("outcome", PRUNED)
    while True:
        pass


def failing(architecture: Architecture, note: Any) -> None:
    note("groups", 3)
    raise RuntimeError


def test_a_process_that_does_not_end_or_fails_leaves_what_it_found(capfd: pytest.CaptureFixture[str]) -> None:
    found = run_alone(sleeping, ARCHITECTURES[0], limit=1)
    assert found == {"outcome": PRUNED, "ended": "not done within 1 s of processor time"}
    assert run_alone(failing, ARCHITECTURES[0]) == {"groups": 3, "ended": "the process failed"}


def test_the_table_is_put_between_its_marks(tmp_path: Path) -> None:
    found = {
        "own A": {"outcome": PRUNED, "input": [3, 8, 8], "groups": 2, "macs": 0.5, "error": 2e-7, "half": "0.499"},
        "own B": {"outcome": "refused", "told": "no | group", "reference": "0.512"},
        "timm C": {"outcome": "missing", "told": "no module"},
    }
    text = table.markdown(found)
    assert text.startswith("Of 2 architectures 1 are pruned exactly")
    assert "1 reach half" in text
    assert "| own A | 3 x 8 x 8 | pruned | 2 | 0.500 | 2e-07 |  | 0.499 |  |  |" in text
    assert "refused: no / group" in text
    document = tmp_path / "page.md"
    document.write_text("# Page\n\nText.\n", encoding="utf-8")
    table.write(document, text)
    table.write(document, "another\n")
    assert document.read_text(encoding="utf-8") == f"# Page\n\nText.\n\n{table.BEGIN}\nanother\n{table.END}\n"
