"""What CONTRIBUTING.md shows works as it stands there."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from cleanai_ray import api
from cleanai_ray.analysis.frames import StudyFrames
from cleanai_ray.charts.style import to_svg
from cleanai_ray.config.sections import DataSection, ModelSection
from cleanai_ray.data import open_image_source
from cleanai_ray.registry import CHARTS, DATASETS, METHODS, METRICS, load_plugins
from cleanai_ray.storage import schemas
from cleanai_ray.storage.run_directory import RunDirectory

TEXT = (Path(__file__).resolve().parent.parent / "CONTRIBUTING.md").read_text()
EXAMPLES = dict(re.findall(r"```python\n# cleanai_ray/(\w+/\w+)\.py\n(.*?)```", TEXT, flags=re.DOTALL))


@pytest.fixture
def example(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The name of an example whose module was loaded as a plugin is; the registries forget it afterwards."""
    path: str = request.param
    for registry in (METHODS, METRICS, DATASETS, CHARTS):
        assert registry.names()
        for attribute in ("_values", "_summaries"):
            monkeypatch.setattr(registry, attribute, getattr(registry, attribute).copy())
    module = "example_" + path.replace("/", "_")
    (tmp_path / f"{module}.py").write_text(EXAMPLES[path])
    monkeypatch.syspath_prepend(tmp_path)
    load_plugins([module])
    yield path.partition("/")[2]
    sys.modules.pop(module, None)


def network() -> nn.Sequential:
    torch.manual_seed(1)
    layers = (nn.Conv2d(1, 6, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 2))
    return nn.Sequential(*layers).eval()


def test_there_is_an_example_of_each_kind() -> None:
    assert set(EXAMPLES) == {"importance/l1", "coverage/spread", "data/stripes", "charts/time_by_method"}


@pytest.mark.parametrize("example", ["importance/l1"], indirect=True)
def test_the_method_keeps_the_filters_with_the_largest_norm(example: str) -> None:
    model = network()
    norms = model[0].weight.detach().abs().sum(dim=(1, 2, 3))
    result = api.prune(model, torch.zeros(1, 1, 8, 8), method=example, ratio=0.5)
    kept = norms.argsort(descending=True)[:3].sort().values
    assert torch.equal(result.model[0].weight, model[0].weight[kept])
    assert METHODS.summaries()[example].startswith("L1 norm of the filters")


@pytest.mark.parametrize("example", ["coverage/spread"], indirect=True)
def test_the_metric_keeps_the_channels_that_move_most(example: str) -> None:
    model = network()
    images = torch.randn(32, 1, 8, 8)
    received = model[:4](images)  # what the next layer reads: pooled, [samples, channels]
    width = received.amax(dim=0) - received.amin(dim=0)
    kept = width.argsort(descending=True)[:3].sort().values
    result = api.prune(model, images[:1], [images], method="coverage", coverage_metric=example, ratio=0.5)
    assert torch.equal(result.model[0].weight, model[0].weight[kept])


@pytest.mark.parametrize("example", ["data/stripes"], indirect=True)
def test_the_data_set_can_be_read(example: str) -> None:
    source = open_image_source(
        DataSection(name=example), ModelSection(name="resnet20", num_classes=2, input_shape=(1, 8, 8))
    )
    image, label = source.dataset("test")[0]
    assert image.shape == (1, 8, 8)
    assert label == 0
    # Upright stripes: a column is constant.
    assert (image.std(dim=1) == 0).all()
    assert image.std(dim=2).min() > 0
    assert source.num_samples("train") == 400


@pytest.mark.parametrize("example", ["charts/time_by_method"], indirect=True)
def test_the_chart_can_be_drawn(example: str, tmp_path: Path) -> None:
    rows = [
        {"trial_id": f"t{index}", "status": "ok", "method": "wanda", "label": "wanda", "accuracy": 0.5}
        | {"accuracy_dense": 0.9, "macs": 1, "macs_dense": 2, "params": 1, "params_dense": 2, "seconds_total": index}
        for index in (1, 2, 4)
    ]
    run = RunDirectory(tmp_path / "run")
    run.write_table(schemas.RESULTS_FILE, schemas.to_table(rows, schemas.RESULTS))
    svg = to_svg(CHARTS.get(example)(StudyFrames.load(run)))
    assert "Seconds a trial, by method" in svg
    assert "wanda" in svg
