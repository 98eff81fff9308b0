"""What importing a module drags along; who may import whom is checked by import-linter (`make lint`)."""

from __future__ import annotations

import subprocess
import sys

import pytest


def loaded_after_each(statements: list[str]) -> list[set[str]]:
    """The top-level modules that a fresh process has loaded after each of some statements."""
    told = "\nprint(*sorted({name.partition('.')[0] for name in sys.modules}))\n"
    program = "import sys\n" + "".join(statement + told for statement in statements)
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True, cwd="/")
    return [set(line.split()) for line in done.stdout.splitlines()]


TORCH = {"torch", "torchvision", "torch_pruning"}


STATEMENTS = {
    "without torch": [
        ("import cleanai_ray; dir(cleanai_ray)", {*TORCH, "ray", "numpy", "rich"}),
        ("import cleanai_ray.cli", {*TORCH, "ray", "reportlab", "numpy", "pyarrow", "polars", "pydantic", "yaml"}),
        ("import cleanai_ray.commands.requirements, cleanai_ray.commands.doctor", {*TORCH, "ray", "pyarrow", "polars"}),
        ("import cleanai_ray.commands.page_server", {*TORCH, "ray", "reportlab", "polars", "scipy"}),
        ("import cleanai_ray.config.study", {"torch", "ray", "reportlab"}),
        ("import cleanai_ray.storage.schemas, cleanai_ray.storage.status", {"torch", "ray", "reportlab"}),
        ("import cleanai_ray.analysis.gate", {*TORCH, "ray", "reportlab", "altair"}),
        ("import cleanai_ray; cleanai_ray.load_run, cleanai_ray.analyse", {*TORCH, "ray", "reportlab", "altair"}),
        ("from cleanai_ray.registry import CHARTS, RISKS; RISKS.names()", {*TORCH, "ray", "reportlab", "vl_convert"}),
        ("import cleanai_ray.report", {*TORCH, "ray"}),
        ("from cleanai_ray.registry import CHARTS; CHARTS.names()", {*TORCH, "ray"}),
        ("import cleanai_ray.report.html.page, cleanai_ray.report.pdf.document", {*TORCH, "ray"}),
    ],
    "with torch": [
        ("import cleanai_ray.stages.planning", {"ray", "reportlab", "altair", "polars", "pandas", "transformers"}),
        ("import cleanai_ray.stages.outcome", {"ray", "reportlab"}),
        ("import cleanai_ray; cleanai_ray.prune", {"ray", "reportlab", "altair", "vl_convert"}),
        ("import cleanai_ray.executors.trial_work", {"torchvision", "timm", "pandas", "altair"}),
        ("from cleanai_ray.data.digits import _table; _table()", {"sklearn", "scipy", "pandas"}),
    ],
    "with Ray": [("import cleanai_ray.executors.writer", {*TORCH, "scipy"})],
}


@pytest.mark.parametrize("name", STATEMENTS)
def test_an_import_does_not_drag_along_what_it_does_not_need(name: str) -> None:
    """One process runs statement after statement, each of which may load what those before it did, and more."""
    statements = [statement for statement, _ in STATEMENTS[name]]
    found = loaded_after_each(statements)
    assert "cleanai_ray" in found[0]
    dragged = {
        statement: found[place] & unwanted
        for place, (statement, unwanted) in enumerate(STATEMENTS[name])
        if found[place] & unwanted
    }
    assert dragged == {}


PRUNED_AND_LOADED = """
import tempfile, torch, cleanai_ray as cleanai
from torch import nn
def network():
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                         nn.Linear(8, 2)).eval()
images = [torch.randn(8, 3, 8, 8) for _ in range(2)]
statistics = cleanai.calibrate(network(), images)
result = cleanai.prune(network(), images[0][:1], images, method="coverage", ratio=0.5)
with tempfile.TemporaryDirectory() as folder:
    cleanai.save(result, folder)
    cleanai.load(folder, network)
"""


def test_pruning_and_loading_load_neither_charts_nor_documents_nor_statistics() -> None:
    """What such a program needs is torch, the dependency graph and the formats of files."""
    (loaded,) = loaded_after_each([PRUNED_AND_LOADED])
    unwanted = {"ray", "altair", "vl_convert", "reportlab", "pypdf", "jinja2", "statsmodels", "sklearn", "pandas"}
    assert {"torch", "torch_pruning", "safetensors"} <= loaded
    assert loaded & (unwanted | {"polars", "typer", "rich", "scipy"}) == set()
