"""Constant, nearly constant, duplicated and enormous channels: moments keep their digits, and repair is finite."""

from __future__ import annotations

import copy
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pruned_nets import Case, cut, images_for
from torch import Tensor, nn

from cleanai_ray.repair import collect_moments, compensate_closed_form, compensate_sequential, recalibrate
from cleanai_ray.repair.compensation import narrowed_consumers, solve_ridge
from cleanai_ray.repair.moments import CrossMoments, LayerMoments
from cleanai_ray.repair.trace import trace_consumers

PLAIN, CONSTANT, NEARLY, COPY, ENORMOUS, SHIFTED = range(6)
IMAGES = images_for("plain", 40, torch.float64)


def extreme_rows(number: int = 60) -> Tensor:
    """Rows of one channel of each kind: nearly constant at 1e-9, a copy, 1e6 times as large, and 1e6 away at 1e-3."""
    x = torch.randn(number, 6, generator=torch.Generator().manual_seed(8), dtype=torch.float64)
    scale = torch.tensor([1, 0, 1e-9, 1, 1e6, 1e-3], dtype=torch.float64)
    rows = x * scale + torch.tensor([0, 3, 3, 0, 0, 1e6], dtype=torch.float64)
    rows[:, COPY] = rows[:, PLAIN]
    return rows


def exact_covariance(x: Tensor, z: Tensor) -> Tensor:
    """Population covariance of rows [M, C] and [M, K] in rational arithmetic."""
    left, right = ([[Fraction(value) for value in column] for column in rows.T.tolist()] for rows in (x, z))
    centred = [[[value - sum(column) / len(column) for value in column] for column in side] for side in (left, right)]
    return torch.tensor(
        [
            [float(sum(a * b for a, b in zip(one, other, strict=True)) / len(one)) for other in centred[1]]
            for one in centred[0]
        ],
        dtype=torch.float64,
    )


def assert_exact(found: Tensor, exact: Tensor, deviations: tuple[Tensor, Tensor]) -> None:
    """Every entry is right to six digits of what it could be, the product of the standard deviations."""
    assert ((found - exact).abs() <= 1e-6 * torch.outer(*deviations) + 1e-30).all()


@given(st.sets(st.integers(1, 59), max_size=5))
def test_covariances_are_those_of_exact_arithmetic_however_rows_are_divided(cuts: set[int]) -> None:
    rows = extreme_rows()
    sizes = torch.tensor([0, *sorted(cuts), 60]).diff().tolist()
    parts = [LayerMoments.of(part) for part in rows.split(sizes)]
    pairs = [CrossMoments.of(part, part.flip(1)) for part in rows.split(sizes)]
    total, cross = parts[0], pairs[0]
    for part, pair in zip(parts[1:], pairs[1:], strict=True):
        total, cross = total + part, cross + pair
    exact = exact_covariance(rows, rows)
    deviations = exact.diagonal().sqrt()
    assert_exact(total.covariance, exact, (deviations, deviations))
    assert_exact(cross.covariances[0], exact.flip(1), (deviations, deviations.flip(0)))
    assert_exact(cross.covariances[1], exact.flip(0, 1), (deviations.flip(0), deviations.flip(0)))
    assert float(total.covariance[CONSTANT, CONSTANT]) == 0


@given(st.floats(-1e6, 1e6), st.integers(1, 40), st.integers(1, 40))
def test_the_variance_of_a_constant_is_nothing_and_never_negative(value: float, first: int, second: int) -> None:
    rows = torch.full((first + second, 2), value, dtype=torch.float64)
    merged = LayerMoments.of(rows[:first]) + LayerMoments.of(rows[first:])
    assert (merged.covariance.diagonal() >= 0).all()
    assert (merged.covariance.diagonal() <= 1e-28 * value**2).all()


class Extreme(nn.Module):
    """Two pointwise convolutions; the channels between them are one of each kind."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.conv1, self.conv2 = nn.Conv2d(2, 6, 1), nn.Conv2d(6, 3, 1)
        self.double().eval()
        with torch.no_grad():
            scale = torch.tensor([1, 0, 1e-9, 1, 1e6, 1e-3], dtype=torch.float64)
            self.conv1.weight.mul_(scale[:, None, None, None])
            self.conv1.bias.copy_(torch.tensor([0.5, 3, 3, 0.5, 1, 1e6]))
            self.conv1.weight[COPY] = self.conv1.weight[PLAIN]

    def forward(self, x: Tensor) -> Tensor:
        return self.conv2(self.conv1(x))


def closed_form(case: Case, ridge: float) -> nn.Module:
    model = copy.deepcopy(case.result.model)
    features = narrowed_consumers(case.dense, case.result.kept_inputs)
    moments = collect_moments(case.dense, IMAGES.split(7), layers=list(features), features=features)
    compensate_closed_form(case.pair(model), moments, trace_consumers(model, IMAGES[:1]), ridge=ridge)
    return model


def sequential(case: Case, ridge: float) -> nn.Module:
    model = copy.deepcopy(case.result.model)
    compensate_sequential(case.pair(model), IMAGES.split(7), ridge=ridge)
    return model


def sequential_in_batches(case: Case, ridge: float) -> nn.Module:
    model = copy.deepcopy(case.result.model)
    compensate_sequential(case.pair(model), IMAGES.split(7), ridge=ridge, memory_limit=0)
    return model


READERS = (closed_form, sequential, sequential_in_batches)


@torch.no_grad()
def least_squares_output(case: Case, removed: list[int], ridge: float, towards_kept: bool) -> Tensor:
    """The output after fitting the channels from those kept by lstsq on the data, with a row for every ridge term."""
    x = case.dense.conv1(IMAGES).movedim(1, -1).reshape(-1, 6)
    kept = [channel for channel in range(6) if channel not in removed]
    mean, centred = x.mean(dim=0), x - x.mean(dim=0)
    level = ridge * centred[:, kept].square().mean(dim=0).mean()
    target = torch.eye(6, dtype=x.dtype)[kept] if towards_kept else torch.zeros(len(kept), 6, dtype=x.dtype)
    rows = torch.cat([centred[:, kept] / len(x) ** 0.5, level.sqrt() * torch.eye(len(kept), dtype=x.dtype)])
    goals = torch.cat([centred / len(x) ** 0.5, level.sqrt() * target])
    fitted = torch.linalg.lstsq(rows, goals, driver="gelsd").solution
    predicted = mean + centred[:, kept] @ fitted
    if not towards_kept:
        predicted[:, kept] = x[:, kept]
    out = predicted @ case.dense.conv2.weight[:, :, 0, 0].T + case.dense.conv2.bias
    return out.reshape(len(IMAGES), 8, 8, 3).movedim(-1, 1)


@pytest.mark.parametrize(
    ("kind", "ridge"), [(closed_form, 1e-3), (closed_form, 0.0), (sequential, 1e-3), (sequential_in_batches, 1e-3)]
)
@pytest.mark.parametrize("removed", [[CONSTANT], [NEARLY], [CONSTANT, NEARLY]])
def test_constant_channels_cost_nothing_and_their_mean_goes_into_the_bias(
    kind, ridge: float, removed: list[int]
) -> None:
    case = cut(Extreme(), {"conv1": removed})
    model = kind(case, ridge)
    with torch.no_grad():
        change = (model(IMAGES) - case.dense(IMAGES)).abs().max()
        shift = case.dense.conv2.weight[:, removed, 0, 0].sum(dim=1) * 3
    assert float(change) < 1e-7
    if ridge:
        assert torch.allclose(model.conv2.bias - case.dense.conv2.bias, shift, atol=1e-4)


@pytest.mark.parametrize("kind", READERS)
@pytest.mark.parametrize("removed", [[COPY], [ENORMOUS], [SHIFTED], [PLAIN, ENORMOUS], [CONSTANT, COPY, SHIFTED]])
def test_any_channel_is_replaced_as_least_squares_on_the_data_would(kind, removed: list[int]) -> None:
    case = cut(Extreme(), {"conv1": removed})
    model = kind(case, 1e-3)
    expected = least_squares_output(case, removed, 1e-3, towards_kept=kind is not closed_form)
    with torch.no_grad():
        difference = (model(IMAGES) - expected).abs().max()
    assert float(difference) < 1e-8 * float(expected.abs().max())


@pytest.mark.parametrize("ridge", [1e-3, 0.0])
def test_a_variance_that_was_rounded_below_zero_does_no_harm(ridge: float) -> None:
    covariance = torch.diag(torch.tensor([1.0, 2.0, -7.5e-19], dtype=torch.float64))
    cross = torch.tensor([[0.5, 1.0, 1e-19]], dtype=torch.float64)
    level = ridge * 1.0  # The mean of 1, 2 and 0.
    expected = torch.tensor([[0.5 / (1 + level), 1 / (2 + level), 0]], dtype=torch.float64)
    assert torch.allclose(solve_ridge(cross, covariance, ridge), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("eps", [1e-5, 1e-15])
def test_batch_norms_keep_the_variance_of_constant_channels_and_follow_that_of_others(eps: float) -> None:
    """Channels 0 to 3: ordinary, constant, constant far from zero, enormous. Pruning doubled the deviations of two."""
    dense = nn.Sequential(nn.Conv2d(2, 4, 1), nn.BatchNorm2d(4, eps=eps), nn.Flatten()).eval()
    with torch.no_grad():
        dense[0].weight.normal_(generator=torch.Generator().manual_seed(1))
        dense[0].weight[1:3] = 0
        dense[0].weight[3] *= 1e6
        dense[0].bias.copy_(torch.tensor([0.0, 0.1, 1e6 / 3, 0.0]))
        dense[1].running_var.copy_(torch.tensor([1.0, 2.0, 3.0, 4.0]))
        pruned = copy.deepcopy(dense)
        pruned[0].weight[[0, 3]] *= 2
        pruned[0].bias[1:3] *= 1.1
    recalibrate(dense, pruned, IMAGES.float().split(8), kept_outputs={})
    assert torch.allclose(pruned[1].running_var, torch.tensor([4.0, 2.0, 3.0, 16.0]), rtol=1e-4)
    shift = pruned[1].running_mean[1:3] - dense[1].running_mean[1:3]
    assert torch.allclose(shift, torch.tensor([0.01, 1e5 / 3]), rtol=1e-3)
