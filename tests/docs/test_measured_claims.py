"""What the README says was measured stands on the page that it names, and the peer is told at its best."""

from __future__ import annotations

import re

import pytest
from docs_markdown import ROOT, read

ROWS = re.findall(
    r"^\| (.*) \| \[[^\]]*\]\((docs/[\w/.-]+\.md)(?:#[\w-]+)?\) \|$", read("README.md"), flags=re.MULTILINE
)


@pytest.mark.parametrize(("claim", "page"), ROWS, ids=[f"{number}-{page}" for number, (_, page) in enumerate(ROWS)])
def test_every_number_is_on_the_page_that_the_row_names(claim: str, page: str) -> None:
    told = re.findall(r"\d+\.\d+", (ROOT / page).read_text(encoding="utf-8"))
    for number in re.findall(r"\d+\.\d+", claim):  # the README may round what the page has
        digits = len(number.partition(".")[2])
        assert number in {f"{float(value):.{digits}f}" for value in told}


def test_torch_pruning_is_told_with_recalibrated_batch_norm_wherever_it_is_told_an_accuracy() -> None:
    assert len(ROWS) > 5
    named = [claim for claim, _ in ROWS if "torch-pruning" in claim]
    assert named
    assert all("recalibrated" in claim for claim in named)
