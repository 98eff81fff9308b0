"""Attention in shifted windows with a bias by relative position, in separate layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from cleanai_ray.nn.attention import HeadProduct, OpenAttention

_FAR = -100.0
"""Added to the products of positions of a window that were no neighbours before the shift, as torchvision does."""


class OpenWindowAttention(OpenAttention):
    """Stands for torchvision's `ShiftedWindowAttention` (Liu et al. 2021, arXiv:2103.14030).

    Args:
        projections: The layers of queries, keys and values.
        heads: The product.
        original: The module that it stands for, whose output layer and table of biases it has.
    """

    output_name = "proj"

    def __init__(self, projections: tuple[nn.Linear, nn.Linear, nn.Linear], heads: HeadProduct, original: Any) -> None:
        super().__init__(projections, heads)
        self.proj = original.proj
        self.window, self.shift = tuple(original.window_size), tuple(original.shift_size)
        self.dropout = original.dropout
        self.relative_position_bias_table = original.relative_position_bias_table
        self.register_buffer("relative_position_index", original.relative_position_index)

    def forward(self, x: Tensor) -> Tensor:
        """Return the output for a map of tokens [N, H, W, C]."""
        height, width = x.shape[1], x.shape[2]
        x = functional.pad(x, (0, 0, 0, -width % self.window[1], 0, -height % self.window[0]))
        grid = x.shape[1] // self.window[0], x.shape[2] // self.window[1]
        shift = [0 if number <= 1 else step for number, step in zip(grid, self.shift, strict=True)]
        x = x.roll((-shift[0], -shift[1]), (1, 2))
        tokens = self._windows(x, grid).flatten(2, 3).flatten(0, 1)
        q, k, v = self.project(tokens, tokens, tokens)
        output = self.proj(self.heads(q, k, v, self._mask(q, grid, shift)))
        output = functional.dropout(output, self.dropout, self.training)
        output = output.unflatten(0, (-1, *grid)).unflatten(3, self.window).transpose(2, 3).flatten(3, 4).flatten(1, 2)
        output = output.roll((shift[0], shift[1]), (1, 2))
        return output[:, :height, :width].contiguous()

    def _windows(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        """Return a map [N, H, W, C] as windows [N, windows, height, width, C]."""
        parts = x.unflatten(2, (grid[1], self.window[1])).unflatten(1, (grid[0], self.window[0]))
        return parts.transpose(2, 3).flatten(1, 2)

    def _mask(self, query: Tensor, grid: tuple[int, int], shift: Sequence[int]) -> Tensor:
        """Return what is added to the products: the bias and, in shifted windows, `_FAR` between parts of the map."""
        size = self.window[0] * self.window[1]
        table, index = self.relative_position_bias_table, self.relative_position_index
        assert isinstance(index, Tensor)
        bias = table[index].view(size, size, -1).permute(2, 0, 1).unsqueeze(0)
        if not any(shift):
            return bias
        rows, columns = (
            self._parts(number, window, step, query)
            for number, window, step in zip(grid, self.window, shift, strict=True)
        )
        parts = self._windows((3 * rows[:, None] + columns)[None, :, :, None], grid).reshape(-1, size)
        far = (parts[:, None] != parts[:, :, None]).to(query) * _FAR
        return (bias + far[:, None]).repeat(query.shape[0] // len(far), 1, 1, 1)

    @staticmethod
    def _parts(number: int, window: int, step: int, like: Tensor) -> Tensor:
        """Return the part of the shifted map that each place of a dimension belongs to: 0, 1 or 2."""
        places = torch.arange(number * window, device=like.device)
        if step == 0:
            return torch.zeros_like(places)
        return (places >= (number - 1) * window).long() + (places >= number * window - step).long()

    def drop_heads(self, heads: Sequence[int]) -> None:
        """Remove the biases of heads."""
        table = self.relative_position_bias_table
        stays = [head for head in range(table.shape[1]) if head not in set(heads)]
        self.relative_position_bias_table = nn.Parameter(table.detach()[:, stays], requires_grad=table.requires_grad)
        if table.grad is not None:
            self.relative_position_bias_table.grad = table.grad[:, stays]
