"""The positions of a sample at which moments are taken."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from cleanai_ray.nn.consumers import as_positions
from cleanai_ray.nn.splitmix64 import splitmix64

POSITIONS_PER_SAMPLE = 64


class PositionSampler:
    """Draws the same positions for a sample and a layer, whatever batch, shard or model they are read in.

    Of P positions, one is drawn from each of `positions_per_sample` equal stretches, or all if P is smaller.

    Args:
        positions_per_sample: Most positions to draw per sample.
        features: Features per channel of consumers that read a flattened feature map, by name.
    """

    def __init__(self, positions_per_sample: int, features: Mapping[str, int] | None = None) -> None:
        self.number = positions_per_sample
        self._features = features or {}

    def rows(self, name: str, module: nn.Module, value: Tensor, samples: range) -> Tensor:
        """Return the drawn positions of a consumer's input as a new tensor [samples * positions, C]."""
        positions = as_positions(module, value, len(samples), self._features.get(name, 1))
        total = positions.shape[1]
        if total <= self.number:
            return positions.flatten(0, 1).clone()
        chosen = torch.as_tensor(self._draw(name, samples, total), device=value.device)
        return positions[torch.arange(len(samples), device=value.device)[:, None], chosen].flatten(0, 1)

    def positions(self, name: str, samples: range, total: int) -> Tensor:
        """Return the positions drawn for a layer, of `total`, [samples, positions]."""
        if total <= self.number:
            return torch.arange(total).expand(len(samples), -1)
        return torch.as_tensor(self._draw(name, samples, total))

    def _draw(self, name: str, samples: range, total: int) -> np.ndarray:
        salt = np.frombuffer(hashlib.sha256(name.encode()).digest()[:8], dtype=np.uint64)
        stretches = np.arange(self.number, dtype=np.uint64)
        ids = np.arange(samples.start, samples.stop, dtype=np.uint64)
        mixed = splitmix64(0, splitmix64(0, ids + salt)[:, None] + stretches)
        fraction = (mixed >> np.uint64(11)).astype(np.float64) / 2.0**53
        drawn = np.floor((stretches + fraction) * (total / self.number)).astype(np.int64)
        return np.minimum(drawn, total - 1)
