"""The memory that a trial takes, and the processes that feed it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from cleanai_ray.config.study import parse_study
from cleanai_ray.data import loader_processes as loaders
from cleanai_ray.stages.footprint import batch_of, estimated_peak, measure_footprint, measured_peak
from cleanai_ray.stages.workspace import open_workspace

STUDY: dict[str, Any] = {
    "model": {"name": "resnet20", "num_classes": 10, "input_shape": [1, 8, 8]},
    "data": {"name": "digits", "batch_size": 50},
    "sweep": {"methods": ["magnitude"], "ratios": [0.3]},
}


def net() -> nn.Module:
    """A net of 392 bytes of weights, whose layers return 128, 128, 128 and 12 bytes for an input of 64 bytes."""
    return nn.Sequential(nn.Conv2d(1, 2, 1, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(32, 3, bias=False))


def test_an_estimate_counts_weights_and_what_is_alive_at_a_time() -> None:
    example = torch.zeros(1, 1, 4, 4)
    assert estimated_peak(net(), example, 10, trains=False) == 2 * 392 + 10 * (64 + 3 * 128)
    assert estimated_peak(net(), example, 10, trains=True) == 6 * 392 + 10 * (64 + 128 + 128 + 128 + 12)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ([], (50, False)),
        (["finetune.epochs=1"], (50, True)),
        (["finetune={epochs: 1, batch_size: 64}"], (64, True)),
        (["finetune={epochs: 1, batch_size: 16}"], (50, True)),
        (["repair.distill_steps=5"], (50, True)),
        (["repair.compensation=blockwise"], (50, True)),
    ],
)
def test_the_batch_that_counts_is_the_one_that_takes_most(changes: list[str], expected: tuple[int, bool]) -> None:
    assert batch_of(parse_study(STUDY, changes)) == expected


def test_a_footprint_has_headroom_and_grows_with_the_batch() -> None:
    found = []
    for size in (50, 100):
        workspace = open_workspace(parse_study(STUDY, [f"data.batch_size={size}"]).model_dump_json(), "cpu")
        model = torch.nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
        found.append(measure_footprint(workspace, model))
    assert [one.batch_size for one in found] == [50, 100]
    assert not any(one.is_measured or one.trains for one in found)
    # Of an image: 256 bytes of input, and three times the flattened input, the largest output.
    assert found[1].needed_bytes - found[0].needed_bytes == 1.5 * 50 * 4 * 256


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("trains", [False, True])
def test_a_measurement_is_near_the_estimate_and_changes_no_weight(trains: bool) -> None:
    model = nn.Sequential(*[nn.Conv2d(8, 8, 3, padding=1) for _ in range(20)]).cuda()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    example = torch.zeros(1, 8, 64, 64, device="cuda")
    measured = measured_peak(model, example, 64, trains=trains)
    assert measured is not None
    estimated = estimated_peak(model, example, 64, trains=trains)
    assert estimated / 3 < measured < 3 * estimated
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert measured_peak(model, example, 10**9, trains=trains) is None


@pytest.mark.parametrize(
    ("setting", "cpus", "device", "expected"),
    [
        ("auto", 16, "cuda:0", 15),
        ("auto", 16, "cpu", 4),
        ("auto", 1, "cuda:0", 0),
        ("auto", 0.5, "cpu", 0),
        ("auto", 2, "cpu", 0),
        ("auto", 200, "cuda:0", 32),
        (3, 1, "cpu", 3),
        (0, 16, "cuda:0", 0),
    ],
)
def test_loaders_take_the_cores_that_feed_the_device(
    monkeypatch: pytest.MonkeyPatch, setting: Any, cpus: float, device: str, expected: int
) -> None:
    monkeypatch.setattr(loaders, "_assigned", 1.0)
    assert loaders.loader_processes("auto", torch.device(device)) == 0, "nobody has told the process of its cores"
    loaders.assign_cpus(cpus)
    assert loaders.loader_processes(setting, torch.device(device)) == expected
