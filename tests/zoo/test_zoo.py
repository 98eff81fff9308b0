"""The zoo: architectures of timm, torchvision, transformers and our own, each tried in a process of its own."""

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
import zoo_after
import zoo_record
import zoo_reference
import zoo_table
from torch import nn
from zoo_architectures import KEEPS, PRUNED, Architecture
from zoo_list import ARCHITECTURES
from zoo_processes import run_alone
from zoo_trial import EXACT, try_architecture

from cleanai_ray.graph.readiness import told_together

IN_TESTS = [each for each in ARCHITECTURES if each.expected]


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


FOUND: dict[str, dict[str, Any]] = {
    "own A": {"outcome": PRUNED, "input": [3, 8, 8], "groups": 2, "macs": 0.5, "error": 2e-7, "half": "0.499"},
    "own B": {"outcome": "refused", "told": "no | group", "reference": "0.512", "meaning": zoo_reference.OTHER},
    "own C": {"outcome": KEEPS, "half": "the budget cannot be met: all leaves 3e+06, and 2e+06 are allowed"},
    "timm D": {"outcome": "missing", "told": "no module"},
    "own E": {"ended": "the process failed"},
}
FOUND["own A"] |= {"repair": "3 of 4, 0.25", "onnx": zoo_after.EQUAL, "remark": "1 not followed", "seconds": 4.0}
FOUND["own C"] |= {"repair": "2 of 2, 1.10", "onnx": "not captured", "onnx_told": "it cannot be captured"}


def test_the_table_is_put_between_its_marks(tmp_path: Path) -> None:
    text = zoo_table.markdown(FOUND, 9)
    assert text.startswith("Of 9 architectures listed 4 were tried. Of these 2 are pruned exactly")
    assert "1 keep some layers" in text
    assert "1 refused by name, 1 not done; 1 reach half" in text
    assert "60 s are allowed for each.\n" in text
    assert "allowed for each, in which 1 reached the ratio alone.\n" in zoo_table.markdown(
        {"own F": {"outcome": KEEPS}}, 9
    )
    assert "makes 1 smaller models that run: 0 compute what" in text
    assert "tried on 2 of them, and runs on 2. It refits 5 of the 6 layers that lost inputs, in 1 models all" in text
    assert "the outputs of 1 are nearer" in text
    assert "tried on 2 of them: 1 compute the same in onnxruntime as in torch, and of 1 no file" in text
    row = "| own A | 3 x 8 x 8 | pruned | 2 | 0.500 | 2e-07 |  | 0.499 | 3 of 4, 0.25 | equal | 4 |  | 1 not followed |"
    assert row in text
    assert "| own C |  | keeps |  |  |  |  | 0.750 at least | 2 of 2, 1.10 | not captured |  |  |  |" in text
    assert "- own B: refused: no / group\n- own C: ONNX: it cannot be captured\n- own E: not done: the process" in text
    document = tmp_path / "page.md"
    document.write_text("# Page\n\nText.\n", encoding="utf-8")
    zoo_table.write(document, text)
    zoo_table.write(document, "another\n")
    expected = f"# Page\n\nText.\n\n{zoo_table.BEGIN}\nanother\n{zoo_table.END}\n"
    assert document.read_text(encoding="utf-8") == expected


def test_the_table_of_a_document_is_read_as_what_was_found(tmp_path: Path) -> None:
    document = tmp_path / "page.md"
    document.write_text("| own Z | a table before |\n", encoding="utf-8")
    text = zoo_table.markdown(FOUND, 9)
    zoo_table.write(document, text)
    read = zoo_record.read_table(document)
    assert read.keys() == FOUND.keys() - {"timm D"}
    assert read["own A"] == FOUND["own A"]
    assert {"onnx": "not captured", "onnx_told": "it cannot be captured"}.items() <= read["own C"].items()
    assert (read["own B"]["reference"], read["own B"]["meaning"]) == ("0.512", zoo_reference.OTHER)
    assert zoo_table.markdown(read, 9) == text


def test_only_parts_that_nothing_is_known_of_are_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[tuple[Any, str]] = []

    def run(function: Any, architecture: Architecture, limit: int) -> dict[str, Any]:
        ran.append((function, architecture.name))
        if architecture.name == "Slow":
            return {"repair": "2 of 2, 0.10", "ended": "not done within 120 s of processor time"}
        return {"repair": "1 of 1, 0.50", "onnx": zoo_after.EQUAL}

    monkeypatch.setattr(table, "run_alone", run)
    results, names = tmp_path / "zoo.jsonl", ("Known", "Refused", "Done", "Slow")
    listed = [Architecture(source="own", name=name) for name in names]
    known = {f"own {name}": {"outcome": PRUNED} for name in ("Known", "Slow")}
    known |= {"own Refused": {"outcome": "refused"}, "own Done": {"outcome": KEEPS, "onnx": "not captured"}}
    expected = {key: dict(each) for key, each in known.items()}
    expected["own Known"] |= {"repair": "1 of 1, 0.50", "onnx": zoo_after.EQUAL}
    expected["own Slow"] |= {"repair": "2 of 2, 0.10", "onnx": "not done in time"}
    for _ in range(2):  # The second time, the file of results tells all.
        assert table.try_all(listed, results, ["after"], known) == expected
        assert ran == [(zoo_after.try_afterwards, "Known"), (zoo_after.try_afterwards, "Slow")]


class Small(nn.Module):
    """Two convolutions, the second of which may lose inputs, one by one of its channels, and a Linear layer."""

    def __init__(self, returns: Any = lambda logits: logits) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.one, self.two, self.fc = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, groups=8), nn.Linear(8, 3)
        self.returns = returns

    def forward(self, x: torch.Tensor) -> Any:
        return self.returns(self.fc(self.two(self.one(x).relu()).relu().mean((2, 3))))


def test_repair_and_export_are_tried_on_what_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime")
    images = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    listed, noted = ARCHITECTURES[0], dict[str, Any]()
    monkeypatch.setattr(zoo_after, "build", lambda each: (Small().eval(), images))
    zoo_after.try_afterwards(listed, noted.__setitem__)
    refitted, _, left = noted["repair"].partition(", ")
    assert (refitted, noted["onnx"]) == ("1 of 1", zoo_after.EQUAL)  # Linear alone: the other one is depthwise.
    assert 0 < float(left) < 0.9
    monkeypatch.setattr(zoo_after, "build", lambda each: (Small(lambda logits: [logits, 2 * logits]).eval(), images))
    zoo_after.try_afterwards(listed, noted.__setitem__)
    assert noted["repair"].startswith("1 of 1, ")
    assert noted["onnx"] == "several outputs"
    assert "a list of 2 tensors" in noted["onnx_told"]


def test_samples_are_like_the_example_and_distances_are_of_all_outputs() -> None:
    tokens = zoo_after.samples_like(torch.tensor([[3, 7], [7, 9]]))
    assert tokens.shape == (zoo_after.SAMPLES, 2)
    assert set(tokens.flatten().tolist()) <= {3, 7, 9}
    one, other = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
    nn.init.ones_(one.weight), nn.init.constant_(other.weight, 4.0)
    assert zoo_after.distance(one, other, torch.tensor([[1.0], [-1.0]])) == 3.0


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
