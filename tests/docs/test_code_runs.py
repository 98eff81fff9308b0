"""The Python blocks of README and guides run as they stand there, one after another, as a reader would."""

from __future__ import annotations

import ast
import importlib.util
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from docs_markdown import ROOT, blocks
from torch import nn

import cleanai_ray as cleanai
from cleanai_ray.deploy.standalone import export_standalone

ELSEWHERE = {
    "CONTRIBUTING.md": "tests/test_contributing.py",
    "docs/how-to/other-tasks.md": "tests/tasks/test_segmentation.py",
}
"""Documents whose blocks another test runs."""

DOCUMENTS = sorted({block.document for block in blocks("python")} - set(ELSEWHERE))


def network() -> nn.Sequential:
    """A network that takes no time, for blocks that say `model` and leave it to the reader."""
    layers = (nn.Conv2d(3, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.Conv2d(32, 32, 3, padding=1), nn.ReLU())
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 4)).eval()


def given() -> dict[str, Any]:
    """The names that a guide uses without defining them."""
    torch.manual_seed(0)
    batches = [torch.randn(10, 3, 8, 8) for _ in range(3)]
    return {
        "cleanai": cleanai,
        "share_of_parameters": share_of_parameters,
        "model": network(),
        "dense": network(),
        "images": batches,
        "held_out": batches[:1],
        "batches": batches,
    }


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The reader's folder, with a finished study and a pruned ResNet-18 in it."""
    run = tmp_path / "artifacts" / "quickstart"
    run.mkdir(parents=True)
    shutil.copy(ROOT / "artifacts" / "research_fashion_mnist" / "results.parquet", run)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def test_the_tests_of_other_documents_read_them() -> None:
    for document, test in ELSEWHERE.items():
        assert Path(document).name in (ROOT / test).read_text(encoding="utf-8")


REPLACED = {
    "models.resnet18": "models.squeezenet1_1",  # a ResNet-18 takes longer than all other documents together
    'create_model("resnet18"': 'create_model("test_resnet"',
    'cleanai.run("my_study.yaml", executor="local")': 'cleanai.load_run("artifacts/quickstart")',  # it takes a minute
    'latency={"runs": 20, "budget_batch_size": 1}': "latency=share_of_parameters",  # no timing decides a test
}


WITH_OTHERS = ("docs/how-to/training-elsewhere.md",)
"""Documents of which some blocks show packages that this one does not need."""


def missing(code: str) -> set[str]:
    """Return the packages that a block imports and that are not installed."""
    nodes = list(ast.walk(ast.parse(code)))
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module}
    packages = {name.partition(".")[0] for name in names}
    return {name for name in packages if importlib.util.find_spec(name) is None}


def test_a_block_is_left_out_for_a_package_that_is_missing_and_for_nothing_else() -> None:
    assert missing("import torch, nowhere.part\nfrom elsewhere import a") == {"nowhere", "elsewhere"}
    left = [missing(block.text) for block in blocks("python") if block.document in WITH_OTHERS]
    assert len(left) > 3
    assert set().union(*left) <= {"lightning", "accelerate", "transformers"}


def share_of_parameters(dense: nn.Module, pruned: nn.Module) -> float:
    """Return a ratio that stands for that of two latencies."""
    small, large = (sum(value.numel() for value in model.parameters()) for model in (pruned, dense))
    return small / large


def run(document: str, names: dict[str, Any], replaced: Mapping[str, str] = REPLACED) -> dict[str, Any]:
    """Run a document's blocks in order, and return the names that they leave.

    In `WITH_OTHERS`, a block is left out that imports a package that is not installed.
    """
    for block in blocks("python"):
        if block.document == document and not (document in WITH_OTHERS and missing(block.text)):
            text = block.text
            for old, new in replaced.items():
                text = text.replace(old, new)
            exec(compile(text, str(block), "exec"), names)
    return names


@pytest.mark.parametrize("document", DOCUMENTS)
def test_the_code_of_a_document_runs(document: str, folder: Path) -> None:
    if document == "docs/how-to/timm-and-hugging-face.md":
        pytest.importorskip("timm", reason="timm is not installed")
    if document == "docs/how-to/deploying.md":
        model = torchvision.models.squeezenet1_1(num_classes=10).eval()
        result = cleanai.prune(model, torch.randn(1, 3, 64, 64), method="magnitude", ratio=0.5)
        cleanai.save(result, "small/")
        export_standalone(result.model, torch.randn(1, 3, 64, 64), folder / "small_elsewhere")
    names = given()
    if document in ("docs/how-to/latency.md", "docs/concepts/repair.md"):
        names["images"] = names["batches"][0]
    names = run(document, names)
    sys.modules.pop("model", None)  # of the folder small_elsewhere
    if "small" in names:
        widths = [parameter.shape for parameter in names["small"].parameters()]
        assert widths == [parameter.shape for parameter in names["result"].model.parameters()]


@pytest.mark.slow
def test_the_readme_runs_word_for_word(folder: Path) -> None:
    names = run("README.md", {}, replaced={})
    achieved = names["result"].plan.achieved
    assert 0.49 <= achieved["macs"] / achieved["macs_dense"] <= 0.5
    with torch.no_grad():
        small, pruned = names["small"].eval(), names["result"].model.eval()
        assert torch.equal(small(names["images"][0]), pruned(names["images"][0]))
