"""The refit of a layer that a rectifier follows: what the rectifier takes away need not be right."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from cleanai_ray.config.sections import HELD_BACK
from cleanai_ray.repair.images import is_held_back
from cleanai_ray.repair.patch_moments import PatchMoments, RidgeSystem
from cleanai_ray.repair.rectifiers import ActiveRange

STEPS = 6
_OVER_RELAXATION = 1.5
ROWS_PER_FEATURE = 128
LEAST_ROWS, MOST_ROWS = 2048, 16384
MOST_BYTES = 64 * 1024**2
"""Rows of one layer that are kept, and bytes of their patches."""

Refit = tuple[Tensor, Tensor]
"""The change of a weight, [groups, outputs of a group, features], and the shift of the output, [outputs]."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ActiveRows:
    """Some rows of a layer, and the range of its outputs that makes a difference.

    Attributes:
        patches: What the layer reads, [M, groups, features].
        made: What it makes of it, [M, outputs].
        target: What it should make, [M, outputs].
        active: The range.
    """

    patches: Tensor
    made: Tensor
    target: Tensor
    active: ActiveRange

    @cached_property
    def moments(self) -> PatchMoments:
        """Moments of the rows."""
        return PatchMoments.of(self.patches, self.made, self.target)

    def error(self, change: Tensor, shift: Tensor) -> float:
        """Return the mean squared error that is left behind the rectifier after a refit, summed over the outputs.

        Args:
            change: Change of the weight, [groups, outputs of a group, features].
            shift: Shift of the output, [groups x outputs of a group].
        """
        kind = torch.promote_types(self.patches.dtype, torch.float32)
        added = self.patches.transpose(0, 1).to(kind) @ change.transpose(1, 2).to(kind)
        made = self.made.to(kind) + added.transpose(0, 1).flatten(1) + shift.to(kind)
        wrong = self.active.passed(made) - self.active.passed(self.target.to(kind))
        return float(wrong.square().sum(dtype=torch.float64) / len(wrong))


def solve_rectified(rows: ActiveRows, ridge: float) -> Refit:
    """Return the change of a weight, and the shift of the output, that are best behind a rectifier.

    The loss of a row is the squared distance of its output from the values that the rectifier cannot tell from the
    target: an output below zero is right for any target below zero. It is convex; each step solves the regression in
    which those rows ask for what they get already, a majorant of the loss, with over-relaxation. All steps share one
    system: only its right-hand side changes.

    Args:
        rows: The rows.
        ridge: Regularisation; see `PatchMoments.solve`.

    Returns:
        As `PatchMoments.solve`.
    """
    moments = rows.moments
    system = RidgeSystem.of(moments, ridge)
    cross = moments.cross / moments.count
    change = system.solve(cross)
    shift = moments.error - (change @ moments.patch[:, :, None]).squeeze(2)
    kind = torch.promote_types(rows.patches.dtype, torch.float32)
    patches = rows.patches.transpose(0, 1).to(kind)
    centred = patches - moments.patch[:, None].to(kind)
    made, target = rows.made.to(kind), rows.target.to(kind)
    for _ in range(STEPS):
        added = patches @ change.transpose(1, 2).to(kind) + shift[:, None].to(kind)
        asked = rows.active.ask(target, made + added.transpose(0, 1).flatten(1))
        relief = (asked - target).unflatten(1, (len(patches), -1)).transpose(0, 1)
        mean = relief.mean(dim=1, dtype=torch.float64)
        products = (relief - mean[:, None].to(kind)).transpose(1, 2) @ centred
        wanted = system.solve(cross + products.double() / len(made))
        level = moments.error + mean - (wanted @ moments.patch[:, :, None]).squeeze(2)
        change = change + _OVER_RELAXATION * (wanted - change)
        shift = shift + _OVER_RELAXATION * (level - shift)
    return change, shift.flatten()


def correction(rows: ActiveRows, ridge: float) -> Refit:
    """Return by how much a rectifier changes the regression on some rows, to be added to that on more of them."""
    (change, shift), (plain_change, plain_shift) = solve_rectified(rows, ridge), rows.moments.solve(ridge)
    return change - plain_change, shift - plain_shift


class RowSample:
    """The rows of a part of the images, evenly drawn: as many as there is room for.

    Which images they are depends on nothing but their numbers and the number of all.

    Args:
        active: The range of the layer's outputs that makes a difference.
        number: Images.
    """

    def __init__(self, active: ActiveRange, number: int) -> None:
        self._active = active
        self._number = number
        self._parts: tuple[list[list[Tensor]], list[list[Tensor]]] = ([], [])

    def add(self, numbers: np.ndarray, patches: Tensor, made: Tensor, target: Tensor) -> None:
        """Add the rows of some images; see `Evidence.of`."""
        groups, features = patches.shape[2:]
        wanted = min(max(ROWS_PER_FEATURE * features, LEAST_ROWS), MOST_ROWS)
        bytes_of_row = groups * features * patches.element_size()
        room = max(1, min(wanted, MOST_BYTES // bytes_of_row) // patches.shape[1])
        chosen, checks = numbers // HELD_BACK % -(-self._number // room) == 0, is_held_back(numbers)
        for part, some in zip(self._parts, (chosen & ~checks, chosen & checks), strict=True):
            if some.any():
                places = torch.from_numpy(np.flatnonzero(some)).to(patches.device)
                part.append([each.index_select(0, places).flatten(0, 1) for each in (patches, made, target)])

    @property
    def fits(self) -> ActiveRows | None:
        """Rows to fit to; None without any."""
        return self._rows(self._parts[0])

    @property
    def checks(self) -> ActiveRows | None:
        """Rows that choose between fits; None without any."""
        return self._rows(self._parts[1])

    def _rows(self, parts: list[list[Tensor]]) -> ActiveRows | None:
        if not parts:
            return None
        patches, made, target = (torch.cat(values) for values in zip(*parts, strict=True))
        return ActiveRows(patches=patches, made=made, target=target, active=self._active)
