"""The positions of a sample at which moments are taken."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from cleanai_ray.nn.consumers import as_positions
from cleanai_ray.nn.splitmix64 import splitmix64
from cleanai_ray.nn.splitmix64_tensor import shifted, splitmix64_tensor

POSITIONS_PER_SAMPLE = 64


@dataclass(frozen=True, kw_only=True, eq=False)
class Places:
    """Some samples of a batch.

    Attributes:
        batch_size: Samples of the batch.
        index: Places of the samples in the batch, int64 [n], on the batch's device.
    """

    batch_size: int
    index: Tensor


class PositionSampler:
    """Draws the same positions for a sample and a layer, whatever batch, shard or model they are read in.

    Of P positions, one is drawn from each of `positions_per_sample` equal stretches, or all if P is smaller. Positions
    are drawn on the device that they are read on: nothing waits for it.

    Args:
        positions_per_sample: Most positions to draw per sample.
        features: Features per channel of consumers that read a flattened feature map, by name.
    """

    def __init__(self, positions_per_sample: int, features: Mapping[str, int] | None = None) -> None:
        self.number = positions_per_sample
        self._features = features or {}
        self._prepared = range(0)
        self._places_in_stretches: dict[str, Tensor] = {}

    def rows(self, name: str, module: nn.Module, value: Tensor, samples: range, places: Places | None = None) -> Tensor:
        """Return the drawn positions of a consumer's input as a new tensor [samples * positions, C].

        Args:
            name: The consumer's name.
            module: The consumer.
            value: Its input.
            samples: Numbers of the samples to read.
            places: Their places in the batch; by default they are the whole batch.
        """
        size = len(samples) if places is None else places.batch_size
        positions = as_positions(module, value, size, self._features.get(name, 1))
        total = positions.shape[1]
        if total <= self.number:
            return (positions.clone() if places is None else positions[places.index]).flatten(0, 1)
        chosen = self._drawn(name, samples, total, value.device)
        index = torch.arange(size, device=value.device) if places is None else places.index
        return positions[index[:, None], chosen].flatten(0, 1)

    def positions(self, name: str, samples: range, total: int) -> Tensor:
        """Return the positions drawn for a layer, of `total`, [samples, positions]."""
        if total <= self.number:
            return torch.arange(total).expand(len(samples), -1)
        return torch.as_tensor(self._draw(name, samples, total))

    def prepare(self, names: Sequence[str], samples: range, device: torch.device) -> None:
        """Draw for several layers at once, which a GPU does in the time that it takes for one."""
        if device.type != "cpu":
            self._prepared = samples
            drawn = self._in_stretches([_salt(name) for name in names], samples, device)
            self._places_in_stretches = dict(zip(names, drawn.unbind(), strict=True))

    def _drawn(self, name: str, samples: range, total: int, device: torch.device) -> Tensor:
        """Return positions on a device, [samples, positions]."""
        if device.type == "cpu":
            return torch.as_tensor(self._draw(name, samples, total))
        known = self._places_in_stretches.get(name) if samples == self._prepared else None
        if known is None:
            (known,) = self._in_stretches([_salt(name)], samples, device)
        return (known * (total / self.number)).long().clamp_max_(total - 1)

    def _in_stretches(self, salts: list[int], samples: range, device: torch.device) -> Tensor:
        """Return a stretch and a fraction of it, as one number, for each layer, sample and stretch; float64."""
        stretches = torch.arange(self.number, device=device)
        ids = torch.arange(samples.start, samples.stop, device=device)
        zero = ids.new_zeros(())
        seeds = torch.stack([ids + (salt - (1 << 64) if salt >= 1 << 63 else salt) for salt in salts])
        mixed = splitmix64_tensor(zero, splitmix64_tensor(zero, seeds)[..., None] + stretches)
        return stretches + shifted(mixed, 11).double() / 2.0**53

    def _draw(self, name: str, samples: range, total: int) -> np.ndarray:
        stretches = np.arange(self.number, dtype=np.uint64)
        ids = np.arange(samples.start, samples.stop, dtype=np.uint64)
        mixed = splitmix64(0, splitmix64(0, ids + np.uint64(_salt(name)))[:, None] + stretches)
        fraction = (mixed >> np.uint64(11)).astype(np.float64) / 2.0**53
        drawn = np.floor((stretches + fraction) * (total / self.number)).astype(np.int64)
        return np.minimum(drawn, total - 1)


def _salt(name: str) -> int:
    """Return 64 bits that depend on a layer's name."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")
