"""Rectifiers behind layers and behind sums: which values of a layer's output they can tell apart."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from cleanai_ray.nn.hooks import count_hooks
from cleanai_ray.nn.patches import reads_patches
from cleanai_ray.repair import ModelPair
from cleanai_ray.repair.rectifiers import ActiveRange, find_active_ranges
from cleanai_ray.repair.rows import Rows
from cleanai_ray.repair.sampling import PositionSampler
from cleanai_ray.repair.trace import trace_consumers
from cleanai_ray.repair.watching import Unit, trace_units

IMAGES = torch.randn(3, 4, 5, 5, generator=torch.Generator().manual_seed(2))


def units_of(model: nn.Module) -> dict[str, Unit]:
    found = trace_consumers(model, IMAGES, reads_patches)
    return {unit.consumer.name: unit for unit in trace_units(model, IMAGES, found)}


def ranges_of(dense: nn.Module, kept: dict[str, np.ndarray] | None = None) -> dict[str, ActiveRange]:
    models = ModelPair(dense=dense.eval(), pruned=copy.deepcopy(dense), kept_inputs={}, kept_outputs=kept or {})
    found = find_active_ranges(models, IMAGES, units_of(models.pruned))
    assert count_hooks(models.pruned) == 0
    return found


def assert_range(found: ActiveRange, low: list[float], high: list[float]) -> None:
    for value, expected in ((found.low, low), (found.high, high)):
        torch.testing.assert_close(value, torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize(
    ("activation", "low", "high"),
    [
        (nn.ReLU(), 0.0, math.inf),
        (nn.ReLU(inplace=True), 0.0, math.inf),
        (nn.ReLU6(), 0.0, 6.0),
        (nn.Hardtanh(-2.0, 1.0, inplace=True), -2.0, 1.0),
        (nn.Hardswish(), -3.0, math.inf),
        (nn.Hardsigmoid(), -3.0, 3.0),
    ],
)
def test_the_range_of_a_layer_is_that_of_the_rectifier_behind_it(
    activation: nn.Module, low: float, high: float
) -> None:
    found = ranges_of(nn.Sequential(nn.Conv2d(4, 2, 1), activation, nn.Conv2d(2, 2, 1)))
    assert list(found) == ["0"]
    assert_range(found["0"], [low] * 2, [high] * 2)
    values = torch.linspace(-9, 9, 50)
    told_apart = activation(values.clone()).diff().abs() > 1e-6
    assert torch.equal(told_apart, (values[:-1] < high) & (values[1:] > low))


@pytest.mark.parametrize("activation", [nn.GELU(), nn.SiLU(), nn.LeakyReLU(0.1), nn.Tanh(), nn.Identity()])
def test_behind_other_functions_every_value_counts(activation: nn.Module) -> None:
    assert ranges_of(nn.Sequential(nn.Conv2d(4, 2, 1), activation)) == {}


def norm_by_hand() -> nn.BatchNorm2d:
    """Scales 1, -1, 0 and 1; shifts 3, 2, 5 and -1."""
    norm = nn.BatchNorm2d(4, eps=0.0)
    norm.weight.data.copy_(torch.tensor([2.0, -1.0, 0.0, 0.5]))
    norm.running_var.copy_(torch.tensor([4.0, 1.0, 1.0, 0.25]))
    norm.bias.data.copy_(torch.tensor([3.0, 2.0, 5.0, -1.0]))
    norm.running_mean.copy_(torch.tensor([7.0, -7.0, 1.0, 0.5]))
    return norm


LOW, HIGH = [-3.0, -4.0, -math.inf, 1.0], [3.0, 2.0, math.inf, 7.0]
"""By hand, for 0 to 6 behind the batch-norm, and outputs less its running mean; a scale of 0 tells nothing apart."""


def test_batch_norm_scales_the_range_and_turns_it_around() -> None:
    dense = nn.Sequential(nn.Conv2d(4, 4, 3), norm_by_hand(), nn.ReLU6())
    assert_range(ranges_of(dense)["0"], LOW, HIGH)
    kept = {"0": np.array([1, 3])}
    assert_range(ranges_of(dense, kept)["0"], [LOW[1], LOW[3]], [HIGH[1], HIGH[3]])


class Block(nn.Module):
    """A sum of a convolution, batch-norms behind it, and the input, before a rectifier."""

    def __init__(self, *norms: nn.Module, in_place: bool, act: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.conv, self.norms = nn.Conv2d(4, 4, 3, padding=1), nn.Sequential(*norms)
        self.in_place, self.act = in_place, act

    def forward(self, x: Tensor) -> Tensor:
        made = self.norms(self.conv(x))
        if self.in_place:
            made += x
            return functional.relu(made, inplace=True)
        return self.act(x + made)


def other_norm() -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(4)
    norm.weight.data.copy_(torch.tensor([-0.5, 1.5, 2.0, 0.7]))
    norm.running_mean.copy_(torch.tensor([0.3, -0.2, 0.1, 0.4]))
    norm.bias.data.copy_(torch.tensor([0.1, -0.3, 0.2, 0.5]))
    return norm


@pytest.mark.parametrize("in_place", [True, False])
@pytest.mark.parametrize("norms", [(), (other_norm(),), (other_norm(), other_norm())], ids=["none", "one", "two"])
@torch.no_grad()
def test_a_sum_passes_its_rectifier_exactly_where_the_value_of_its_row_is_in_the_range(
    norms: tuple[nn.Module, ...], in_place: bool
) -> None:
    block = Block(*norms, in_place=in_place, act=torch.relu).eval()
    units = units_of(block)
    assert units["conv"].branch is not None
    rows = Rows(
        models=ModelPair(dense=block, pruned=block, kept_inputs={}, kept_outputs={}),
        units=units,
        sampler=PositionSampler(25),
    )
    made = rows.made("conv", IMAGES, IMAGES, range(3))[1]
    found = ranges_of(block)["conv"]
    passes = block(IMAGES).flatten(2).transpose(1, 2) > 0
    assert torch.equal((made > found.low) & (made < found.high), passes)
    assert 0.2 < float(passes.float().mean()) < 0.8


class Branching(nn.Module):
    """A convolution whose output is read in two ways."""

    def __init__(self, first: Callable[[Tensor], Tensor], second: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.conv, self.first, self.second = nn.Conv2d(4, 4, 1), first, second

    def forward(self, x: Tensor) -> list[Tensor]:
        made = self.conv(x)
        assert made.shape[1] == 4  # A question, and no reading.
        return [self.first(made), self.second(made)]


@pytest.mark.parametrize(
    ("first", "second", "counts"),
    [
        (torch.relu, torch.relu, True),
        (torch.relu, functional.relu6, False),
        (torch.relu, torch.exp, False),
        (torch.exp, torch.relu, False),
        (torch.relu, lambda x: x, False),
        (torch.relu, lambda x: x + 1, False),
        (lambda x: torch.exp(torch.relu_(x)), torch.exp, True),
    ],
    ids=["alike", "unlike", "exp", "exp before", "output", "sum", "changed in place"],
)
def test_what_only_rectifiers_of_one_range_read_has_a_range(
    first: Callable[[Tensor], Tensor], second: Callable[[Tensor], Tensor], counts: bool
) -> None:
    assert list(ranges_of(Branching(first, second))) == (["conv"] if counts else [])


def test_targets_outside_the_range_ask_for_no_more_than_its_end() -> None:
    """By hand, with the range from 0 to 6; in turn: below, within and above it are targets, and what is made."""
    active = ActiveRange(low=torch.tensor([0.0]), high=torch.tensor([6.0]))
    target = torch.tensor([-1.0, -1, -1, 2, 2, 2, 9, 9, 9])[:, None]
    made = torch.tensor([-5.0, 3, 8, -5, 3, 8, -5, 3, 8])[:, None]
    asked = torch.tensor([-5.0, 0, 0, 2, 2, 2, 6, 6, 8])[:, None]
    torch.testing.assert_close(active.ask(target, made), asked)
    passed = torch.tensor([0.0, 0, 0, 2, 2, 2, 6, 6, 6])[:, None]
    torch.testing.assert_close(active.passed(target), passed)
