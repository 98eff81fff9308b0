"""The refit behind a rectifier: against the convex loss minimised by another method, and errors planted for it."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pruned_nets import images_for, random_case
from torch import Tensor

from cleanai_ray.repair import evidence, rectified, unfolded
from cleanai_ray.repair.evidence import Evidence
from cleanai_ray.repair.rectified import ActiveRows, RowSample, correction, solve_rectified
from cleanai_ray.repair.rectifiers import ActiveRange
from cleanai_ray.repair.unfolded import compensate_unfolded

GROUPS, FEATURES, OUTPUTS = 2, 3, 2


def active_rows(patches: Tensor, made: Tensor, target: Tensor, active: ActiveRange) -> ActiveRows:
    return ActiveRows(patches=patches, made=made, target=target, active=active)


def rows_of(number: int, seed: int = 0) -> ActiveRows:
    """Rows of two groups, of which each output has a range of its own, and targets far outside where they are."""
    generator = torch.Generator().manual_seed(seed)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    patches, made = drawn(number, GROUPS, FEATURES) + 0.5, drawn(number, GROUPS * OUTPUTS)
    learnable = torch.einsum("mgf,gof->mgo", patches, drawn(GROUPS, OUTPUTS, FEATURES)).flatten(1)
    low, high = torch.tensor([0.0, -torch.inf, -0.5, -1.0]), torch.tensor([torch.inf, 0.0, 0.5, torch.inf])
    active = ActiveRange(low=low.double(), high=high.double())
    target = made + learnable + 0.5 * drawn(number, GROUPS * OUTPUTS) + 0.3
    target += 3 * (target - active.passed(target))
    return active_rows(patches, made, target, active)


def loss(rows: ActiveRows, ridge: float, change: Tensor, shift: Tensor) -> Tensor:
    """Mean squared distance from what the rectifier cannot tell from the target, and the ridge's penalty."""
    made = rows.made + torch.einsum("mgf,gof->mgo", rows.patches, change).flatten(1) + shift
    low, high = rows.active.low, rows.active.high
    below, above = rows.target < low, rows.target > high
    wrong = torch.where(below, (made - low).clamp_min(0), torch.where(above, (high - made).clamp_min(0), 0.0))
    wrong = torch.where(below | above, wrong, made - rows.target)
    variances = rows.patches.var(dim=0, correction=0).mean(dim=1)
    return wrong.square().sum() / len(made) + ridge * (variances[:, None, None] * change.square()).sum()


def minimum(rows: ActiveRows, ridge: float) -> tuple[Tensor, Tensor]:
    """The least of the loss, by a quasi-Newton method."""
    change = torch.zeros(GROUPS, OUTPUTS, FEATURES, dtype=torch.float64, requires_grad=True)
    shift = torch.zeros(GROUPS * OUTPUTS, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [change, shift], max_iter=500, tolerance_grad=1e-12, tolerance_change=1e-14, line_search_fn="strong_wolfe"
    )

    def step() -> float:
        optimizer.zero_grad()
        value = loss(rows, ridge, change, shift)
        value.backward()
        return float(value.detach())

    optimizer.step(step)
    return change.detach(), shift.detach()


@pytest.mark.parametrize("ridge", [1e-3, 1.0])
def test_many_steps_end_at_the_least_loss(ridge: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rectified, "STEPS", 300)
    rows = rows_of(80)
    for found, expected in zip(solve_rectified(rows, ridge), minimum(rows, ridge), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=2e-5)


@given(st.integers(2, 60), st.integers(0, 1000), st.sampled_from([1e-3, 0.1, 10.0]))
def test_the_loss_is_never_above_that_of_the_regression_it_begins_with(number: int, seed: int, ridge: float) -> None:
    rows = rows_of(number, seed)
    solutions = rows.moments.solve(ridge), solve_rectified(rows, ridge)
    before, after = (float(loss(rows, ridge, *found)) for found in solutions)
    assert after <= before * (1 + 1e-9) + 1e-12


@torch.no_grad()
def test_what_only_a_rectifier_hides_is_no_error() -> None:
    """Targets are a linear map where that is above zero, and anything below zero elsewhere."""
    patches = torch.randn(500, 1, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    wanted = torch.tensor([[1.0, -2.0, 0.5, 0.0], [0.0, 1.0, 1.0, -1.0]], dtype=torch.float64)
    ideal = patches[:, 0] @ wanted.T + 0.2
    target = torch.where(ideal > 0, ideal, -10 * patches.abs().sum(dim=2))
    active = ActiveRange(low=torch.zeros(2), high=torch.full((2,), torch.inf))
    rows = active_rows(patches, torch.zeros_like(target), target, active)
    plain = rows.moments.solve(1e-9)
    assert rows.error(*plain) > 1
    errors = [rows.error(*plain)]
    for steps in (6, 60):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(rectified, "STEPS", steps)
            errors.append(rows.error(*solve_rectified(rows, 1e-9)))
    assert errors[1] < 0.25 * errors[0]
    assert errors[2] < 1e-6


def test_without_an_end_in_reach_it_is_the_plain_regression() -> None:
    rows = rows_of(40)
    wide = ActiveRange(low=torch.full((4,), -torch.inf), high=torch.full((4,), torch.inf))
    rows = active_rows(rows.patches, rows.made, rows.target, wide)
    for found, expected in zip(solve_rectified(rows, 0.1), rows.moments.solve(0.1), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def sampled(rows: ActiveRows, images: int, sizes: list[int]) -> RowSample:
    sample = RowSample(rows.active, images)
    start = 0
    for size in sizes:
        some = slice(start, start + size)
        values = (value.unflatten(0, (images, -1))[some] for value in (rows.patches, rows.made, rows.target))
        sample.add(np.arange(images)[some], *values)
        start += size
    return sample


def test_the_rows_that_are_kept_depend_on_the_images_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """60 images of 4 positions in room for 80 rows (20 a feature are fewer): every third five, one of which checks."""
    monkeypatch.setattr(rectified, "LEAST_ROWS", 80)
    monkeypatch.setattr(rectified, "ROWS_PER_FEATURE", 20)
    rows = rows_of(240)
    numbers = np.flatnonzero(np.arange(60) // 5 % 3 == 0)
    expected = rows.made.unflatten(0, (60, 4))
    for sizes in ([60], [1] * 60, [7, 20, 33]):
        sample = sampled(rows, 60, sizes)
        fits, checks = sample.fits, sample.checks
        assert fits is not None
        assert checks is not None
        assert torch.equal(fits.made, expected[numbers[numbers % 5 != 4]].flatten(0, 1))
        assert torch.equal(checks.made, expected[numbers[numbers % 5 == 4]].flatten(0, 1))


def test_patches_of_many_features_are_kept_of_fewer_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """Six features of 8 bytes: 480 bytes hold ten rows, or two images of 4 positions: five of 30 times five."""
    monkeypatch.setattr(rectified, "MOST_BYTES", 480)
    sample = sampled(rows_of(240), 60, [60])
    assert sample.fits is not None
    assert sample.checks is not None
    assert (len(sample.fits.made), len(sample.checks.made)) == (16, 4)


def test_the_refit_of_all_rows_is_corrected_by_what_the_rectifier_changes_in_some() -> None:
    rows = rows_of(80)
    found, sample = evidence_of(rows), sampled(rows, 20, [20])
    assert sample.fits is not None
    with_it, without = solve_rectified(sample.fits, 0.1), sample.fits.moments.solve(0.1)
    parts = zip(found.solve(0.1, sample), found.solve(0.1), with_it, without, strict=True)
    for corrected, plain, one, other in parts:
        torch.testing.assert_close(corrected, plain + one - other)
        assert not torch.equal(corrected, plain)


def evidence_of(rows: ActiveRows) -> Evidence:
    values = (value.unflatten(0, (20, -1)) for value in (rows.patches, rows.made, rows.target))
    return Evidence.of(*values, checks=np.arange(20) % 5 == 4)


@pytest.mark.parametrize("spoilt", ["wrong", "not finite"])
def test_a_rectified_fit_that_is_no_better_on_the_rows_to_check_is_not_taken(
    spoilt: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = rows_of(80)
    found, sample = evidence_of(rows), sampled(rows, 20, [20])
    plain, better = found.solve(None), found.solve(None, sample)
    assert not torch.equal(plain[0], better[0])
    wrong = 100.0 if spoilt == "wrong" else torch.nan

    def spoil(part: ActiveRows, ridge: float) -> tuple[Tensor, Tensor]:
        change, shift = correction(part, ridge)
        return change + wrong, shift

    monkeypatch.setattr(evidence, "correction", spoil)
    for one, other in zip(found.solve(None, sample), plain, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("name", ["residual", "depthwise"])
@torch.no_grad()
def test_networks_with_rectifiers_end_nearer_to_the_dense_one(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case, images = random_case(name), images_for(name, 200, torch.float64)
    errors = []
    for known in (True, False):
        if not known:
            monkeypatch.setattr(unfolded, "find_active_ranges", lambda *_: {})
        pruned = copy.deepcopy(case.result.model)
        compensate_unfolded(case.pair(pruned), images.split(64))
        errors.append(float((pruned(images) - case.dense(images)).square().mean()))
    assert errors[0] < errors[1]
