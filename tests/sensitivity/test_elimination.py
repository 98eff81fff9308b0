"""Joint elimination against least squares on the data, and against every subset."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from cleanai_ray.sensitivity import consumer_stack, elimination
from cleanai_ray.sensitivity.elimination import Reading, eliminate, eliminate_together

RIDGE = 1e-3


def mixed_inputs(samples: int, channels: int, seed: int) -> Tensor:
    """Correlated, centred inputs [samples, channels] of very different sizes."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(samples, channels, generator=generator, dtype=torch.float64)
    x = x @ torch.randn(channels, channels, generator=generator, dtype=torch.float64)
    x = x * torch.logspace(-2, 2, channels, dtype=torch.float64)
    return x - x.mean(dim=0)


def reading(x: Tensor, units: Tensor, seed: int = 0, outputs: int = 5, positions: int = 3) -> Reading:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(outputs, x.shape[1], positions, generator=generator, dtype=torch.float64)
    return Reading(weight=weight, covariance=x.T @ x / len(x), units=units)


def least_squares_error(entry: Reading, x: Tensor, removed: list[int]) -> float:
    """Relative error left when W x is fitted from the kept inputs, by lstsq on the data and one row a ridge term."""
    kept = [channel for channel in range(x.shape[1]) if channel not in removed]
    scale = (RIDGE * x.square().mean(dim=0)).sqrt()
    rows = torch.cat([x / len(x) ** 0.5, scale.diag()])
    error = energy = 0.0
    for position in range(entry.weight.shape[2]):
        target = rows @ entry.weight[:, :, position].T
        fitted = rows[:, kept] @ torch.linalg.lstsq(rows[:, kept], target, driver="gelsd").solution
        error += float((target - fitted).square().sum())
        energy += float((x @ entry.weight[:, :, position].T).square().mean(dim=0).sum())
    return error / energy


@pytest.mark.parametrize(("channels", "in_a_unit"), [(12, 1), (12, 3), (90, 1)])
def test_the_error_curve_is_the_least_squares_error_of_every_prefix(channels: int, in_a_unit: int) -> None:
    x = mixed_inputs(300, channels, seed=3)
    units = torch.arange(channels).reshape(in_a_unit, -1).T
    entry = reading(x, units)
    order, errors = eliminate([entry], ridge=RIDGE)
    assert len(order) == channels // in_a_unit - 1
    assert len(set(order)) == len(order)
    for count in sorted({1, 2, len(order) // 2, 70, len(order)} & set(range(1, len(order) + 1))):
        removed = units[order[:count]].flatten().tolist()
        assert errors[count - 1] == pytest.approx(least_squares_error(entry, x, removed), rel=1e-6)


def test_the_error_of_a_group_is_the_sum_over_its_readers() -> None:
    x, z = mixed_inputs(300, 10, seed=4), mixed_inputs(300, 12, seed=5)
    first = reading(x, torch.arange(10)[:, None], seed=1)
    second = reading(z, torch.arange(2, 12)[:, None], seed=2)
    order, errors = eliminate([first, second], ridge=RIDGE)
    alone = least_squares_error(first, x, order[:4]) + least_squares_error(second, z, [unit + 2 for unit in order[:4]])
    assert errors[3] == pytest.approx(alone, rel=1e-6)


@pytest.mark.parametrize("seed", range(6))
def test_sets_are_near_the_best_of_all_subsets_and_the_first_is_the_best(seed: int) -> None:
    x = mixed_inputs(200, 8, seed)
    entry = reading(x, torch.arange(8)[:, None], seed)
    order, errors = eliminate([entry], ridge=RIDGE)
    for count in (1, 2, 4):
        subsets = itertools.combinations(range(8), count)
        best = min(least_squares_error(entry, x, list(subset)) for subset in subsets)
        assert errors[count - 1] >= best * (1 - 1e-6)
        assert errors[count - 1] <= best * (1 + (1e-6 if count == 1 else 0.25))
    assert order[0] == min(range(8), key=lambda channel: least_squares_error(entry, x, [channel]))


def test_a_silent_channel_goes_first_and_costs_nothing_however_it_is_weighted() -> None:
    x = mixed_inputs(200, 6, seed=1)
    x[:, 4] = 0
    entry = reading(x, torch.arange(6)[:, None])
    entry.weight[:, 4] = 1e6
    order, errors = eliminate([entry], ridge=RIDGE)
    assert order[0] == 4
    assert errors[0] == pytest.approx(0, abs=1e-12)


def test_a_copy_of_a_channel_costs_next_to_nothing_and_its_original_then_does() -> None:
    x = mixed_inputs(200, 6, seed=2)
    x[:, 5] = -2 * x[:, 1]
    order, errors = eliminate([reading(x, torch.arange(6)[:, None])], ridge=1e-9)
    assert order[0] in (1, 5)
    assert errors[0] < 1e-6 < 1e-3 < errors[-1]


def test_a_group_of_one_unit_has_nothing_to_remove() -> None:
    x = mixed_inputs(50, 3, seed=0)
    assert eliminate([reading(x, torch.tensor([[0, 1, 2]]))]) == ([], [])


PLAIN, CONSTANT, NEARLY, COPY, ENORMOUS, SHIFTED = range(6)


def extreme_inputs(repeats: int = 1) -> Tensor:
    """Inputs of one channel of each kind, several times over; constant, 1e-9, a copy, 1e6 as large, and of 1e-3."""
    x = torch.randn(300, 6 * repeats, generator=torch.Generator().manual_seed(8), dtype=torch.float64)
    kinds = torch.arange(6 * repeats) % 6
    x = x * torch.tensor([1, 0, 1e-9, 1, 1e6, 1e-3], dtype=torch.float64)[kinds]
    x[:, kinds == COPY] = x[:, kinds == PLAIN]
    return x - x.mean(dim=0)


@pytest.mark.parametrize("repeats", [1, 15])
def test_constant_nearly_constant_duplicated_and_enormous_channels_cost_what_least_squares_says(repeats: int) -> None:
    x = extreme_inputs(repeats)
    entry = reading(x, torch.arange(x.shape[1])[:, None])
    entry.weight[:, CONSTANT::6] = 1e9
    order, errors = eliminate([entry], ridge=RIDGE)
    assert {unit % 6 for unit in order[: 2 * repeats]} == {CONSTANT, NEARLY}
    assert errors[2 * repeats - 1] < 1e-25
    for count in sorted({1, 2 * repeats, 3 * repeats, len(order) // 2, len(order)}):
        assert errors[count - 1] == pytest.approx(least_squares_error(entry, x, order[:count]), rel=1e-6, abs=1e-20)


@pytest.mark.parametrize("variance", [-7.5e-19, 7.5e-19, 0.0])
@pytest.mark.parametrize("in_a_unit", [1, 2])
def test_a_variance_that_rounding_made_negative_spoils_no_other_channel(variance: float, in_a_unit: int) -> None:
    x = mixed_inputs(200, 8, seed=1)
    covariance = x.T @ x / len(x)
    # What subtracting large sums leaves of a constant channel: noise, also where it meets other channels.
    covariance[5, :] = covariance[:, 5] = 3e-19
    covariance[5, 5] = variance
    units = torch.arange(8).reshape(-1, in_a_unit)
    weight = reading(x, units).weight
    order, errors = eliminate([Reading(weight=weight, covariance=covariance, units=units)], ridge=RIDGE)
    x[:, 5] = 0
    clean, expected = eliminate([Reading(weight=weight, covariance=x.T @ x / len(x), units=units)], ridge=RIDGE)
    assert order == clean
    assert errors == pytest.approx(expected, rel=1e-6, abs=1e-12)


def test_channels_more_alike_than_can_be_are_taken_for_copies() -> None:
    covariance = torch.tensor([[1, 1 + 1e-9, 0], [1 + 1e-9, 1, 0], [0, 0, 1]], dtype=torch.float64)
    entry = Reading(
        weight=torch.ones(1, 3, 1, dtype=torch.float64), covariance=covariance, units=torch.arange(3)[:, None]
    )
    order, errors = eliminate([entry], ridge=1e-9)
    assert order[0] in (0, 1)
    assert errors[0] < 1e-8
    # One is left of three equal weights: both copies (4 of 5 of the energy), or the other (1 of 5), is lost.
    assert errors[1] == pytest.approx(0.2, rel=1e-6)


def test_readers_of_constants_alone_cost_nothing() -> None:
    entry = Reading(
        weight=torch.ones(2, 3, 1, dtype=torch.float64),
        covariance=torch.zeros(3, 3, dtype=torch.float64),
        units=torch.arange(3)[:, None],
    )
    assert eliminate([entry])[1] == [0.0, 0.0]


def greedy_by_least_squares(entries: list[tuple[Reading, Tensor]]) -> tuple[list[int], list[float]]:
    """Delete the unit after whose deletion, on top of those before, least squares leaves the least error."""
    number = len(entries[0][0].units)
    order: list[int] = []
    errors: list[float] = []
    for _ in range(number - 1):
        totals = {}
        for unit in sorted(set(range(number)) - set(order)):
            gone = [*order, unit]
            totals[unit] = sum(
                least_squares_error(entry, x, entry.units[gone].flatten().tolist()) for entry, x in entries
            )
        order.append(min(totals, key=lambda unit: totals[unit]))
        errors.append(totals[order[-1]])
    return order, errors


def groups_of_many_kinds() -> list[list[tuple[Reading, Tensor]]]:
    """Three groups of 12 units and two of 9: with one, two and three readers, of 1 to 3 channels a unit."""

    def read(seed: int, channels: int, units: Tensor, positions: int = 1) -> tuple[Reading, Tensor]:
        x = mixed_inputs(150, channels, seed)
        return reading(x, units, seed, positions=positions), x

    shuffled = torch.randperm(12, generator=torch.Generator().manual_seed(1))[:, None]
    return [
        [read(1, 12, torch.arange(12)[:, None], positions=3)],
        [read(2, 9, torch.arange(9)[:, None]), read(3, 18, torch.arange(18).reshape(2, 9).T)],
        [read(4, 14, torch.arange(2, 14)[:, None]), read(5, 12, shuffled), read(6, 24, torch.arange(24).view(12, 2))],
        [read(7, 27, torch.arange(27).view(9, 3))],
        [read(8, 13, torch.arange(12)[:, None])],
    ]


@pytest.mark.parametrize("block", [64, 5])
@pytest.mark.parametrize("room", [1 << 40, 0])
@pytest.mark.parametrize("threads", [1, 2])
def test_groups_together_lose_what_deletion_of_one_channel_at_a_time_by_least_squares_takes(
    block: int, room: int, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many corrections are gathered, however few groups there is room for, and on any number of cores."""
    monkeypatch.setattr(consumer_stack, "_BLOCK", block)
    monkeypatch.setattr(elimination, "working_bytes", lambda device: room)
    groups = groups_of_many_kinds()
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        found = eliminate_together([[entry for entry, _ in group] for group in groups], ridge=RIDGE)
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    for group, result in zip(groups, found, strict=True):
        expected_order, expected_errors = greedy_by_least_squares(group)
        order, errors = result
        assert order == expected_order
        assert errors == pytest.approx(expected_errors, rel=1e-6)


def test_of_units_that_cost_the_same_the_first_goes_first() -> None:
    silent = Reading(
        weight=torch.ones(2, 70, 1, dtype=torch.float64),
        covariance=torch.zeros(70, 70, dtype=torch.float64),
        units=torch.arange(70)[:, None],
    )
    x = mixed_inputs(100, 70, seed=6)
    x[:, 10:20] = 0
    some = reading(x, torch.arange(70)[:, None])
    found = eliminate_together([[silent], [some]])
    assert found[0] == (list(range(69)), [0.0] * 69)
    assert found[1][0][:10] == list(range(10, 20))


def test_a_group_that_cannot_be_eliminated_spoils_none_of_those_beside_it(monkeypatch: pytest.MonkeyPatch) -> None:
    good = [reading(mixed_inputs(100, 8, seed), torch.arange(8)[:, None], seed) for seed in range(3)]
    endless = Reading(weight=good[0].weight * 1e200, covariance=good[0].covariance, units=good[0].units)
    pairs = torch.arange(16).view(8, 2)
    unknown = reading(mixed_inputs(100, 16, 9), pairs)
    unknown.covariance[3, 3] = float("nan")
    found = eliminate_together([[good[0]], [endless], [good[1], good[2]], [unknown]], ridge=RIDGE)
    for result, alone in ((found[0], [good[0]]), (found[2], good[1:])):
        order, errors = eliminate(alone, ridge=RIDGE)
        assert result[0] == order
        assert result[1] == pytest.approx(errors, rel=1e-9)
    order, errors = found[1]
    assert sorted(order) == sorted(set(order))
    assert not torch.tensor(errors).isfinite().any()
    assert isinstance(found[3], Exception)
    with pytest.raises(type(found[3])):
        eliminate([unknown], ridge=RIDGE)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_takes_the_same_units_in_the_same_order() -> None:
    groups = [[entry for entry, _ in group] for group in groups_of_many_kinds()]
    wide = [reading(mixed_inputs(900, 300, seed), torch.arange(300)[:, None], seed) for seed in (20, 21)]
    for one, other in zip(
        eliminate_together([*groups, wide], ridge=RIDGE),
        eliminate_together([*groups, wide], ridge=RIDGE, device="cuda"),
        strict=True,
    ):
        assert other[0] == one[0]
        assert other[1] == pytest.approx(one[1], rel=1e-6)


def test_nothing_is_read_back_from_the_device_while_units_are_removed() -> None:
    """On a GPU, each of these operations waits until all others are done."""
    reads = ("_local_scalar_dense", "nonzero", "masked_select", "unique")

    class Counter(TorchDispatchMode):
        found = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            Counter.found += any(name in str(func) for name in reads)
            return func(*args, **(kwargs or {}))

    counts = []
    for number in (6, 40):
        Counter.found = 0
        entries = [reading(mixed_inputs(100, size, 1), torch.arange(size).view(number, -1)) for size in (number,) * 3]
        entries.append(reading(mixed_inputs(100, 2 * number, 2), torch.arange(2 * number).view(number, 2)))
        with Counter():
            found = elimination._eliminate_batch([entries, entries[:1]], [0, 1], RIDGE, torch.device("cpu"))
        assert len(found[0][0]) == number - 1
        counts.append(Counter.found)
    assert counts[0] == counts[1] > 0
