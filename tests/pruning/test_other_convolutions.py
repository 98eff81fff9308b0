"""Convolutions of one and three dimensions, and transposed ones: costed and observed as any other."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cleanai_ray.api import calibrate, prune
from cleanai_ray.graph.graph import ChannelGraph
from cleanai_ray.importance.wanda import _computing_weights, read_weights
from cleanai_ray.nn.complexity import measure_complexity
from cleanai_ray.pruning.cost import CostModel

LINE, MAP, VOLUME = (8,), (8, 8), (4, 4, 4)


class Net(nn.Module):
    """Three convolutions of a kind, and a classifier of means over positions."""

    def __init__(self, kind: Any, **options: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.c = kind(2, 24, 3, **options), kind(24, 32, 3, **options), kind(32, 20, 3, **options)
        self.fc = nn.Linear(20, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.c(torch.relu(self.b(torch.relu(self.a(x))))))
        return self.fc(x.flatten(2).mean(2))


KINDS = {
    "Conv1d": (nn.Conv1d, LINE),
    "Conv2d": (nn.Conv2d, MAP),
    "Conv3d": (nn.Conv3d, VOLUME),
    "ConvTranspose1d": (nn.ConvTranspose1d, LINE),
    "ConvTranspose2d": (nn.ConvTranspose2d, MAP),
    "ConvTranspose3d": (nn.ConvTranspose3d, VOLUME),
}


def net(kind: str) -> tuple[Net, list[tuple[Tensor, Tensor]]]:
    module, shape = KINDS[kind]
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(6, 2, *shape, generator=generator)
    return Net(module, padding=1).eval(), [(images[:3], torch.tensor([0, 1, 2])), (images[3:], torch.tensor([2, 1, 0]))]


@pytest.mark.parametrize("kind", KINDS)
def test_layers_are_counted_and_estimated_exactly(kind: str) -> None:
    model, data = net(kind)
    positions, taps = data[0][0][0, 0].numel(), 3 ** len(KINDS[kind][1])
    layers = {layer.name: layer for layer in measure_complexity(model, data[0][0]).layers}
    assert {name: layers[name].macs for name in "abc"} == {
        "a": 2 * 24 * taps * positions,
        "b": 24 * 32 * taps * positions,
        "c": 32 * 20 * taps * positions,
    }
    assert [(layers[name].in_channels, layers[name].out_channels) for name in "abc"] == [(2, 24), (24, 32), (32, 20)]
    graph = ChannelGraph(model, data[0][0])
    removed = {"a": 5, "b": 12, "c": 7}
    estimate = CostModel(graph).estimate(removed)
    graph.remove({name: list(range(number)) for name, number in removed.items()})
    found = measure_complexity(graph.model, data[0][0])
    assert (estimate["macs"], estimate["params"]) == pytest.approx((found.macs, found.params))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("budget", [{"macs": 0.5}, {"params": 0.5}])
def test_budgets_are_met(kind: str, budget: dict[str, float]) -> None:
    model, data = net(kind)
    result = prune(model, data[0][0], method="magnitude", budget=budget)
    (resource,) = budget
    share = result.plan.achieved[resource] / result.plan.achieved[f"{resource}_dense"]
    assert 0.44 < share <= 0.5  # A channel of one of so few is up to five per cent.


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", ["coverage", "wanda", "taylor"])
def test_activations_are_observed(kind: str, method: str) -> None:
    model, data = net(kind)
    assert {"a", "b", "c", "fc"} == set(calibrate(model, data).inputs)
    result = prune(model, data[0][0], data, method=method, ratio=0.25, round_to=None)
    assert (result.model.a.out_channels, result.model.b.out_channels, result.model.c.out_channels) == (18, 24, 15)


@pytest.mark.parametrize("groups", [1, 2])
def test_weights_that_read_and_compute_a_channel_of_a_transposed_convolution(groups: int) -> None:
    """Weights [inputs, outputs / groups, taps]: every input channel's and every output channel's, one by one."""
    layer = nn.ConvTranspose1d(4, 6, 2, groups=groups)
    weight = layer.weight.detach().abs()
    reads, computes = torch.zeros(4), torch.zeros(6)
    for one in range(4):
        for place in range(6 // groups):
            value = weight[one, place].sum()
            reads[one] += value
            computes[one // (4 // groups) * (6 // groups) + place] += value
    torch.testing.assert_close(read_weights(layer), reads)
    torch.testing.assert_close(_computing_weights(layer), computes)
