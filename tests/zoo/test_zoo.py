"""The zoo: architectures of torchvision, of transformers and of our own, each tried in a process of its own."""

from __future__ import annotations

import copy
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import table
import torch
import zoo_reference
import zoo_table
from torch import nn
from zoo_architectures import KEEPS, PRUNED, Architecture
from zoo_list import ARCHITECTURES
from zoo_processes import run_alone
from zoo_trial import EXACT, try_architecture

from cleanai_ray.graph.readiness import told_together

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
        "own B": {"outcome": "refused", "told": "no | group", "reference": "0.512", "meaning": zoo_reference.OTHER},
        "own C": {"outcome": KEEPS, "half": "the budget cannot be met: all leaves 3e+06, and 2e+06 are allowed"},
        "timm D": {"outcome": "missing", "told": "no module"},
        "own E": {"ended": "the process failed"},
    }
    text = zoo_table.markdown(found, 9)
    assert text.startswith("Of 9 architectures listed 4 were tried. Of these 2 are pruned exactly")
    assert "1 keep some layers" in text
    assert "1 refused by name, 1 not done; 1 reach half" in text
    assert "makes 1 smaller models that run: 0 compute what" in text
    assert "| own A | 3 x 8 x 8 | pruned | 2 | 0.500 | 2e-07 |  | 0.499 |  |  |  |" in text
    assert "| own C |  | keeps |  |  |  |  | 0.750 at least |  |  |  |" in text
    assert "- own B: refused: no / group\n- own E: not done: the process failed\n" in text
    document = tmp_path / "page.md"
    document.write_text("# Page\n\nText.\n", encoding="utf-8")
    zoo_table.write(document, text)
    zoo_table.write(document, "another\n")
    expected = f"# Page\n\nText.\n\n{zoo_table.BEGIN}\nanother\n{zoo_table.END}\n"
    assert document.read_text(encoding="utf-8") == expected


def test_remarks_count_the_layers_that_stay_by_the_kind_of_reason() -> None:
    shuffled = "its channels are shuffled, or cut into blocks or heads"
    reasons = {"a": shuffled, "b": shuffled, "c": "the model does not run without some of its channels: in layer 'd'"}
    heads = "2 attention modules ('x', Attention) keep all heads and their dimensions: they are of no kind"
    told = [heads, *told_together(reasons), "the budget macs=0.5 was missed"]
    assert zoo_table.remark(told) == "heads of 2 modules, 2 shuffled or in blocks, 1 width in the code"
    assert zoo_table.remark([]) == ""


def test_the_reference_is_compared_with_the_silenced_dense_copy() -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 1), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3))
    smaller = copy.deepcopy(model)
    smaller[0].weight.data, smaller[0].bias.data = model[0].weight.data[1:], model[0].bias.data[1:]
    smaller[3].weight.data = model[3].weight.data[:, 4:]  # The first channel has the first four features.
    removed = SimpleNamespace(parameters={})
    removed.cuts = {("0", "out"): np.array([0]), ("3", "in"): np.arange(4)}
    images = torch.randn(1, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    assert zoo_reference.meaning(model, smaller, images, removed) == zoo_reference.SAME
    smaller[3].weight.data = model[3].weight.data[:, :12]
    assert zoo_reference.meaning(model, smaller, images, removed) == zoo_reference.OTHER
