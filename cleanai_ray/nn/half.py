"""Activations kept in 16 bits."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import overload

import torch
from torch import Tensor

_TOP = 15
"""Stored numbers are below 2 to this power; the largest float16 is just below twice as much."""
_LEAST_EXPONENT = -126
"""Of normal numbers in float32."""


class HalfBatches(Sequence[Tensor]):
    """Batches in half of the memory of float32, which come back in their own type.

    Each batch is kept as float16, scaled by a power of two so that its largest value is near the upper end. The error
    of a value x is at most 2^-11 |x| + 2^-39 max |x|, whatever the batch's range; bfloat16, which needs no scale, has
    errors of 2^-9 |x|. Integers and 16-bit types are kept as they are.

    Args:
        batches: Tensors on one device.
        device: Where they are kept, and come back; None: where they are. They go there in 16 bits.
    """

    def __init__(self, batches: Iterable[Tensor], device: torch.device | None = None) -> None:
        self._kept = [_Kept.of(batch).to(device) for batch in batches]

    def on(self, device: torch.device) -> Iterator[Tensor]:
        """Yield the batches on a device, to which they go in 16 bits."""
        return (kept.to(device).restored() for kept in self._kept)

    def __len__(self) -> int:
        return len(self._kept)

    @overload
    def __getitem__(self, place: int) -> Tensor: ...

    @overload
    def __getitem__(self, place: slice) -> Sequence[Tensor]: ...

    def __getitem__(self, place: int | slice) -> Tensor | Sequence[Tensor]:
        if isinstance(place, slice):
            return [kept.restored() for kept in self._kept[place]]
        return self._kept[place].restored()


@dataclass(frozen=True, kw_only=True, eq=False)
class _Kept:
    value: Tensor
    scale: Tensor | None
    kind: torch.dtype

    @staticmethod
    def of(batch: Tensor) -> _Kept:
        if not batch.is_floating_point() or batch.element_size() <= 2 or not batch.numel():
            return _Kept(value=batch, scale=None, kind=batch.dtype)
        largest = batch.abs().amax()
        # A power of two, so that scaling has no rounding of its own; 1 where there is nothing to scale.
        _, exponent = torch.frexp(largest)
        scale = torch.ldexp(torch.ones_like(largest), (exponent - _TOP).clamp_min(_LEAST_EXPONENT))
        scale = torch.where((largest > 0) & torch.isfinite(largest), scale, 1.0)
        return _Kept(value=(batch / scale).half(), scale=scale, kind=batch.dtype)

    def to(self, device: torch.device | None) -> _Kept:
        return replace(self, value=self.value.to(device), scale=None if self.scale is None else self.scale.to(device))

    def restored(self) -> Tensor:
        return self.value if self.scale is None else self.value.to(self.kind) * self.scale
