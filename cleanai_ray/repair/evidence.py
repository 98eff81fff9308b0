"""The evidence for a layer's refit: moments to fit to, and moments of other images to choose the ridge by."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from cleanai_ray.repair.images import is_held_back
from cleanai_ray.repair.patch_moments import PatchMoments
from cleanai_ray.repair.rectified import Refit, RowSample, correction

LAYER_RIDGES = (1e-3, 1e-2, 1e-1, 1.0)
DEFAULT_RIDGE = 1e-2
SAMPLES_AT_ONCE = 128
"""Samples whose rows are worth the work of a merge."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Evidence:
    """Moments of rows. The evidence of two sets of images adds up to that of their union.

    Attributes:
        fits: Moments to fit to; None without rows.
        checks: Moments that choose between fits; None without rows.
    """

    fits: PatchMoments | None
    checks: PatchMoments | None

    @staticmethod
    def of(patches: Tensor, made: Tensor, target: Tensor, checks: np.ndarray) -> Evidence:
        """Return the evidence of some images.

        Args:
            patches: What the layer reads, [N, P, groups, features].
            made: What it makes of it, [N, P, outputs].
            target: What it should make, [N, P, outputs].
            checks: True for the images that choose between fits, [N].
        """
        # Places are found here: masks on a GPU would have to be counted there, and waited for.
        parts = []
        for chosen in (~checks, checks):
            places = torch.from_numpy(np.flatnonzero(chosen)).to(patches.device)
            rows = [each.index_select(0, places).flatten(0, 1) for each in (patches, made, target)]
            parts.append(PatchMoments.of(*rows) if len(places) else None)
        return Evidence(fits=parts[0], checks=parts[1])

    def __add__(self, other: Evidence) -> Evidence:
        return Evidence(fits=_sum(self.fits, other.fits), checks=_sum(self.checks, other.checks))

    @property
    def is_right(self) -> bool:
        """True if the layer's output is what it should be, up to rounding."""
        return all(part is None or part.is_right for part in (self.fits, self.checks))

    def solve(self, ridge: float | None = None, sample: RowSample | None = None) -> tuple[Tensor, Tensor]:
        """Return the change of the weight and the shift of the output, from all rows; see `PatchMoments.solve`.

        Args:
            ridge: Regularisation. None: the one of `LAYER_RIDGES` whose fit to `fits` has the least error on `checks`;
                where a shift alone has less, the weight does not change.
            sample: Some of the rows of a layer that a rectifier follows, which is fitted to what the rectifier lets
                through (where `ridge` is None, only if that is better on the rows to check). None: of another layer.
        """
        total = _sum(self.fits, self.checks)
        assert total is not None, "there are rows"
        best = self._best_ridge() if ridge is None else ridge
        if best is None:
            return torch.zeros_like(total.cross), total.error.flatten()
        plain = total.solve(best)
        return plain if sample is None else self._rectified(plain, best, sample, is_chosen=ridge is None)

    def _best_ridge(self) -> float | None:
        if self.fits is None or self.checks is None:
            return DEFAULT_RIDGE
        errors = {each: self.checks.change_of_error(*self.fits.solve(each)) for each in LAYER_RIDGES}
        best = min(errors, key=lambda each: errors[each])
        unchanged = torch.zeros_like(self.fits.cross)
        if self.checks.change_of_error(unchanged, self.fits.error.flatten()) <= errors[best]:
            return None
        return best

    def _rectified(self, plain: Refit, ridge: float, sample: RowSample, *, is_chosen: bool) -> Refit:
        fits, checks = sample.fits, sample.checks
        if fits is None:
            return plain
        change = correction(fits, ridge)
        if is_chosen and checks is not None and self.fits is not None:
            before = self.fits.solve(ridge)
            if not checks.error(*_added(before, change)) < checks.error(*before):
                return plain
        found = _added(plain, change)
        return found if all(bool(torch.isfinite(value).all()) for value in found) else plain


class EvidenceSum:
    """The evidence of batches, whose rows are gathered until they are worth the work of a merge.

    Args:
        sample: Keeps some of the rows; None: none are needed.
    """

    def __init__(self, sample: RowSample | None = None) -> None:
        self._sample = sample
        self._waiting: list[tuple[range, tuple[Tensor, Tensor, Tensor]]] = []
        self._total: Evidence | None = None

    @property
    def has_rows(self) -> bool:
        """True if there is any evidence."""
        return bool(self._waiting) or self._total is not None

    def add(self, samples: range, patches: Tensor, made: Tensor, target: Tensor) -> None:
        """Add rows of some samples; see `Evidence.of`."""
        self._waiting.append((samples, (patches, made, target)))
        if sum(len(each[0]) for each in self._waiting) >= SAMPLES_AT_ONCE:
            self._merge()

    def solve(self, ridge: float | None) -> tuple[Tensor, Tensor] | None:
        """Return the refit that the evidence of all samples gives (see `Evidence.solve`); None if nothing is wrong."""
        if self._waiting:
            self._merge()
        assert self._total is not None
        return None if self._total.is_right else self._total.solve(ridge, self._sample)

    def _merge(self) -> None:
        numbers = np.concatenate([np.asarray(samples) for samples, _ in self._waiting])
        patches, made, target = (torch.cat(parts) for parts in zip(*(rows for _, rows in self._waiting), strict=True))
        self._waiting = []
        if self._sample is not None:
            self._sample.add(numbers, patches, made, target)
        evidence = Evidence.of(patches, made, target, checks=is_held_back(numbers))
        self._total = evidence if self._total is None else self._total + evidence


def _sum(one: PatchMoments | None, other: PatchMoments | None) -> PatchMoments | None:
    if one is None or other is None:
        return other if one is None else one
    return one + other


def _added(one: Refit, other: Refit) -> Refit:
    return one[0] + other[0], one[1] + other[1]
