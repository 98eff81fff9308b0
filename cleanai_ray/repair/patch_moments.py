"""Moments of the patches that a layer reads and of the error it makes on them, and the refit that they give."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_NOTHING = 1e-6
_LEAST_RIDGE = 1e-10
_RESOLUTION = 1e-6
"""Deviations below this share of a mean patch may be rounding of float32."""
_CONSTANT = 1e-12
"""Deviations below this share of a mean are rounding of float64."""


@dataclass(frozen=True, kw_only=True, eq=False)
class PatchMoments:
    """Moments of patches and errors; float64. The moments of two sets of rows add up to those of their union.

    They are centred, and merged by the pairwise formulas of Chan, Golub and LeVeque (1979).

    Attributes:
        count: Rows.
        patch: Mean patch, [groups, features].
        error: Mean error, [groups, outputs of a group].
        gram: Sum of the products of centred patches, [groups, features, features].
        cross: Sum of the products of centred errors and patches, [groups, outputs of a group, features].
        largest_error: The largest absolute error, [].
        largest_output: The largest absolute output, [].
    """

    count: int
    patch: Tensor
    error: Tensor
    gram: Tensor
    cross: Tensor
    largest_error: Tensor
    largest_output: Tensor

    @staticmethod
    def of(patches: Tensor, outputs: Tensor, targets: Tensor) -> PatchMoments:
        """Return the moments of rows.

        Args:
            patches: What the layer reads, [M, groups, features].
            outputs: What it makes of them, [M, groups x outputs of a group].
            targets: What it should make, of the same shape.
        """
        kind = torch.promote_types(patches.dtype, torch.float32)
        errors = (targets.to(kind) - outputs.to(kind)).unflatten(1, (patches.shape[1], -1))
        patch, features, spread = _standardised(patches.transpose(0, 1), kind)
        error, residues, reach = _standardised(errors.transpose(0, 1), kind)
        return PatchMoments(
            count=len(patches),
            patch=patch,
            error=error,
            gram=(features.transpose(1, 2) @ features).double() * spread[:, :, None] * spread[:, None, :],
            cross=(residues.transpose(1, 2) @ features).double() * reach[:, :, None] * spread[:, None, :],
            largest_error=errors.abs().max(),
            largest_output=outputs.abs().max(),
        )

    def __add__(self, other: PatchMoments) -> PatchMoments:
        count = self.count + other.count
        share = other.count / count
        patch, error = other.patch - self.patch, other.error - self.error
        patch = torch.where(patch.abs() > _CONSTANT * self.patch.abs(), patch, 0.0)
        weight = self.count * share
        return PatchMoments(
            count=count,
            patch=self.patch + share * patch,
            error=self.error + share * error,
            gram=self.gram + other.gram + weight * patch[:, :, None] * patch[:, None, :],
            cross=self.cross + other.cross + weight * error[:, :, None] * patch[:, None, :],
            largest_error=torch.maximum(self.largest_error, other.largest_error),
            largest_output=torch.maximum(self.largest_output, other.largest_output),
        )

    @property
    def is_right(self) -> bool:
        """True if the layer's output is what it should be, up to rounding."""
        return bool(self.largest_error.double() <= _NOTHING * self.largest_output.double())

    def change_of_error(self, change: Tensor, shift: Tensor) -> float:
        """Return by how much a refit changes the mean squared error of these rows, summed over the outputs.

        With u = D p + s, it is E|u|^2 - 2 E(e u).
        """
        gram, cross = self.gram / self.count, self.cross / self.count
        mean = (change @ self.patch[:, :, None]).squeeze(2) + shift.view_as(self.error)
        spread = ((change @ gram - 2 * cross) * change).sum()
        return float(spread + (mean * (mean - 2 * self.error)).sum())

    def solve(self, ridge: float) -> tuple[Tensor, Tensor]:
        """Return the ridge regression of the error on the patch: change of the weight, and shift of the output.

        D = C_ep (C_pp + l I)^-1 and mu_e - D mu_p, in each group, with l = ridge x mean diagonal of C_pp. The weight
        shrinks towards what it is, and not towards zero. A group whose patches never vary gets a shift alone.

        Args:
            ridge: Regularisation, as a share of the mean variance of a group's patches.

        Returns:
            Change of the weight, [groups, outputs of a group, features]; shift, [groups x outputs of a group].
        """
        system = RidgeSystem.of(self, ridge)
        change = system.solve(self.cross / self.count)
        shift = self.error - (change @ self.patch[:, :, None]).squeeze(2)
        return change, shift.flatten()


@dataclass(frozen=True, kw_only=True, eq=False)
class RidgeSystem:
    """The factors of C_pp + l I in each group, for many right-hand sides.

    Attributes:
        factors: LU factors, [groups, features, features].
        pivots: Their pivots, [groups, features].
    """

    factors: Tensor
    pivots: Tensor

    @staticmethod
    def of(moments: PatchMoments, ridge: float) -> RidgeSystem:
        """Factorise the system of `PatchMoments.solve`."""
        gram = moments.gram / moments.count
        variances = gram.diagonal(dim1=1, dim2=2)
        rounding = (_RESOLUTION * moments.patch).square().amax(dim=1)
        level = torch.maximum(ridge * variances.mean(dim=1), _LEAST_RIDGE * variances.max()).maximum(rounding)
        level = torch.where(level > 0, level, 1.0)
        factors, pivots = torch.linalg.lu_factor(gram + torch.diag_embed(level[:, None].expand_as(variances)))
        return RidgeSystem(factors=factors, pivots=pivots)

    def solve(self, cross: Tensor) -> Tensor:
        """Return cross (C_pp + l I)^-1, [groups, outputs of a group, features], as `cross` is."""
        return torch.linalg.lu_solve(self.factors, self.pivots, cross.transpose(1, 2)).transpose(1, 2)


def _standardised(rows: Tensor, kind: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Return the mean of rows [groups, M, C], their deviations as shares of the largest, in a type, and the largest.

    The mean is summed in float64, and what the type cannot hold of it is corrected, so that constants have no variance;
    shares do not overflow.
    """
    rows = rows.to(kind)
    mean = rows.mean(dim=1, dtype=torch.float64)
    deviations = rows - mean.to(kind)[:, None]
    mean = mean.to(kind).double() + deviations.mean(dim=1, dtype=torch.float64)
    deviations -= deviations.mean(dim=1, keepdim=True)
    largest = deviations.abs().amax(dim=1)
    constant = largest.double() <= _CONSTANT * mean.abs()
    largest = torch.where(constant, 0.0, largest)
    return mean, deviations.mul_(torch.where(largest > 0, 1 / largest, 0.0)[:, None]), largest.double()
