"""Moments of the patches that a layer reads and of the error it makes on them, and the refit that they give."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_NOTHING = 1e-6
_LEAST_RIDGE = 1e-10


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
        largest_error: The largest absolute error.
        largest_output: The largest absolute output.
    """

    count: int
    patch: Tensor
    error: Tensor
    gram: Tensor
    cross: Tensor
    largest_error: float
    largest_output: float

    @staticmethod
    def of(patches: Tensor, outputs: Tensor, targets: Tensor) -> PatchMoments:
        """Return the moments of rows.

        Args:
            patches: What the layer reads, [M, groups, features].
            outputs: What it makes of them, [M, groups x outputs of a group].
            targets: What it should make, of the same shape.
        """
        errors = (targets - outputs).unflatten(1, (patches.shape[1], -1))
        patch, error = patches.mean(dim=0), errors.mean(dim=0)
        centred = (patches - patch).transpose(0, 1)
        return PatchMoments(
            count=len(patches),
            patch=patch.double(),
            error=error.double(),
            gram=(centred.transpose(1, 2) @ centred).double(),
            cross=((errors - error).permute(1, 2, 0) @ centred).double(),
            largest_error=float(errors.abs().max()),
            largest_output=float(outputs.abs().max()),
        )

    def __add__(self, other: PatchMoments) -> PatchMoments:
        count = self.count + other.count
        share = other.count / count
        patch, error = other.patch - self.patch, other.error - self.error
        weight = self.count * share
        return PatchMoments(
            count=count,
            patch=self.patch + share * patch,
            error=self.error + share * error,
            gram=self.gram + other.gram + weight * patch[:, :, None] * patch[:, None, :],
            cross=self.cross + other.cross + weight * error[:, :, None] * patch[:, None, :],
            largest_error=max(self.largest_error, other.largest_error),
            largest_output=max(self.largest_output, other.largest_output),
        )

    @property
    def is_right(self) -> bool:
        """True if the layer's output is what it should be, up to rounding."""
        return self.largest_error <= _NOTHING * self.largest_output

    def solve(self, ridge: float) -> tuple[Tensor, Tensor]:
        """Return the ridge regression of the error on the patch: change of the weight, and shift of the output.

        D = C_ep (C_pp + l I)^-1 and mu_e - D mu_p, in each group, with l = ridge x mean diagonal of C_pp. The weight
        shrinks towards what it is, and not towards zero. A group whose patches never vary gets a shift alone.

        Args:
            ridge: Regularisation, as a share of the mean variance of a group's patches.

        Returns:
            Change of the weight, [groups, outputs of a group, features]; shift, [groups x outputs of a group].
        """
        gram, cross = self.gram / self.count, self.cross / self.count
        variances = gram.diagonal(dim1=1, dim2=2)
        level = torch.maximum(ridge * variances.mean(dim=1), _LEAST_RIDGE * variances.max())
        level = torch.where(level > 0, level, 1.0)
        regular = gram + torch.diag_embed(level[:, None].expand_as(variances))
        change = torch.linalg.solve(regular, cross.transpose(1, 2)).transpose(1, 2)
        shift = self.error - (change @ self.patch[:, :, None]).squeeze(2)
        return change, shift.flatten()
