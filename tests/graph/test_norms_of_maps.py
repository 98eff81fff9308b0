"""Where a kind of layer-norm has its channels is found by trying, on a value that is small however wide the norm is."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cleanai_ray.graph.silencing import channel_axis


class _Watched(nn.LayerNorm):
    """Notes how many values it is tried on."""

    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.most = 0

    def forward(self, value: Tensor) -> Tensor:
        self.most = max(self.most, value.numel())
        return self.normalised(value)

    def normalised(self, value: Tensor) -> Tensor:
        return super().forward(value)


class _OfMaps(_Watched):
    def normalised(self, value: Tensor) -> Tensor:
        return super().normalised(value.movedim(1, -1)).movedim(-1, 1)


class _Written(_Watched):
    """Of channels in the last dimension, as someone writes it: where there is one channel, it is spread over all."""

    def normalised(self, value: Tensor) -> Tensor:
        return (value - value.mean(-1, keepdim=True)) / (value.var(-1, keepdim=True) + 1e-5).sqrt() * self.weight


@pytest.mark.parametrize("width", [2, 3, 4, 5, 2048])
@pytest.mark.parametrize("num_dims", [4, 5])
@pytest.mark.parametrize(("kind", "axis"), [(_OfMaps, 1), (_Watched, -1), (_Written, -1)])
def test_the_axis_of_a_norm_is_found_on_few_values(kind: Any, axis: int, num_dims: int, width: int) -> None:
    norm = kind(width)
    assert channel_axis(norm, torch.zeros(1, width, *[2] * (num_dims - 2))) == axis
    assert 0 < norm.most <= 60 * width
