"""Moments of patches: merging, and the ridge regression that they give, against least squares on all rows."""

from __future__ import annotations

from functools import reduce
from operator import add

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from cleanai_ray.repair.patch_moments import PatchMoments

FIELDS = ("patch", "error", "gram", "cross")


def rows(number: int, groups: int = 2, features: int = 3, outputs: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    """Patches, outputs and targets, float64."""
    patches = torch.randn(number, groups, features, dtype=torch.float64) + 2
    made = torch.randn(number, groups * outputs, dtype=torch.float64)
    return patches, made, made + 0.5 * torch.randn_like(made) + 0.3


def assert_equal(one: PatchMoments, other: PatchMoments) -> None:
    assert one.count == other.count
    assert (one.largest_error, one.largest_output) == (other.largest_error, other.largest_output)
    for field in FIELDS:
        torch.testing.assert_close(getattr(one, field), getattr(other, field), rtol=1e-9, atol=1e-9)


@given(st.lists(st.integers(1, 6), min_size=1, max_size=5), st.randoms(use_true_random=False))
def test_any_split_merged_in_any_order_has_the_moments_of_all_rows(sizes: list[int], random) -> None:
    values = rows(sum(sizes))
    parts = [PatchMoments.of(*part) for part in zip(*(value.split(sizes) for value in values), strict=True)]
    random.shuffle(parts)
    assert_equal(reduce(add, parts), PatchMoments.of(*values))


def test_the_moments_are_those_of_their_definition() -> None:
    """Two rows of one feature and one output, by hand: patches 1 and 3, errors 2 and 6."""
    found = PatchMoments.of(
        torch.tensor([[[1.0]], [[3.0]]]), torch.tensor([[-7.0], [1.0]]), torch.tensor([[-5.0], [7.0]])
    )
    assert (found.count, found.largest_error, found.largest_output) == (2, 6.0, 7.0)
    assert [getattr(found, field).item() for field in FIELDS] == [2.0, 4.0, 2.0, 4.0]
    # D = 2 / (1 + l), l = 0.5 x 1; the shift is 4 - D 2.
    change, shift = found.solve(0.5)
    assert change.item() == pytest.approx(4 / 3)
    assert shift.item() == pytest.approx(4 - 8 / 3)


@pytest.mark.parametrize("ridge", [1e-6, 1e-2, 1.0])
def test_the_refit_is_ridge_regression_in_each_group(ridge: float) -> None:
    """Least squares on the centred rows and, below them, sqrt(M l) times the identity against zeros."""
    patches, made, targets = rows(40)
    change, shift = PatchMoments.of(patches, made, targets).solve(ridge)
    errors = (targets - made).unflatten(1, (2, -1))
    for group in range(2):
        x, y = patches[:, group], errors[:, group]
        centred = x - x.mean(0)
        penalty = (40 * ridge * centred.square().mean()).sqrt() * torch.eye(3, dtype=torch.float64)
        expected = torch.linalg.lstsq(
            torch.cat([centred, penalty]), torch.cat([y - y.mean(0), torch.zeros(3, 2)])
        ).solution.T
        torch.testing.assert_close(change[group], expected, rtol=1e-8, atol=1e-10)
        torch.testing.assert_close(shift.unflatten(0, (2, -1))[group], y.mean(0) - expected @ x.mean(0))


@pytest.mark.parametrize("kind", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("groups", [[0], [0, 1]], ids=["one", "both"])
def test_patches_that_never_vary_give_a_shift_alone(kind: torch.dtype, groups: list[int]) -> None:
    """The constant is no multiple of a power of two, so that sums of it are rounded; other groups are refitted."""
    patches, made, targets = (value.to(kind) for value in rows(999))
    patches[:, groups] = 0.1
    found = PatchMoments.of(patches[:500], made[:500], targets[:500])
    change, shift = (found + PatchMoments.of(patches[500:], made[500:], targets[500:])).solve(1e-6)
    error = (targets.double() - made.double()).mean(0).unflatten(0, (2, -1))
    for group in groups:
        torch.testing.assert_close(change[group], torch.zeros(2, 3, dtype=torch.float64), rtol=0, atol=1e-9)
        torch.testing.assert_close(shift.unflatten(0, (2, -1))[group], error[group], rtol=0, atol=1e-6)
    assert (change[1].abs().max() > 1e-3) == (1 not in groups)


@pytest.mark.parametrize("value", [0.0, 1e-30, 0.1, 1e6, 1e30])
def test_patches_that_are_all_alike_need_no_ridge(value: float) -> None:
    patches, made, targets = (x.float() for x in rows(50))
    change, shift = PatchMoments.of(torch.full_like(patches, value), made, targets).solve(1e-2)
    assert float(change.abs().max()) * value < 1e-6
    torch.testing.assert_close(shift, (targets.double() - made.double()).mean(0), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("size", [1e10, 1e25, 1e37])
@pytest.mark.parametrize("ridge", [0.0, 1e-6, 1e-2])
def test_an_enormous_feature_and_a_duplicate_spoil_nothing(size: float, ridge: float) -> None:
    """What is added to the outputs stays finite, and is no farther from the errors than nothing is."""
    patches, made, targets = (x.float() for x in rows(60))
    patches[:, 0, 1] = patches[:, 0, 0]
    patches[:, 1, 0] *= size
    change, shift = PatchMoments.of(patches, made, targets).solve(ridge)
    assert torch.isfinite(change).all()
    assert torch.isfinite(shift).all()
    errors = (targets - made).double()
    added = torch.einsum("mgf,gof->mgo", patches.double(), change).flatten(1) + shift
    assert float((errors - added).square().sum()) <= float(errors.square().sum())


def test_one_row_gives_its_error_as_a_shift() -> None:
    patches, made, targets = rows(1)
    change, shift = PatchMoments.of(patches, made, targets).solve(1e-2)
    assert not change.any()
    torch.testing.assert_close(shift, (targets - made)[0])


@pytest.mark.parametrize(("error", "right"), [(0.0, True), (1e-7, True), (1e-5, False), (float("nan"), False)])
def test_a_layer_is_right_up_to_rounding(error: float, right: bool) -> None:
    patches, made, _ = rows(5)
    targets = made.clone()
    targets[3, 1] += error * float(made.abs().max())
    assert PatchMoments.of(patches, made, targets).is_right is right
