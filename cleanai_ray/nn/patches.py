"""Layers as linear maps of patches: what a layer reads for one output position, and its weight as a matrix."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

Layer = nn.Conv2d | nn.ConvTranspose2d | nn.Linear | nn.MultiheadAttention


def reads_patches(module: nn.Module) -> bool:
    """Return whether a module's output is, at every position, one linear map of a patch of its input.

    That is so for Conv2d and ConvTranspose2d (in groups, too), Linear, and the packed in-projection of
    MultiheadAttention (query, key and value from one input).
    """
    if isinstance(module, nn.MultiheadAttention):
        return module.in_proj_weight is not None
    return isinstance(module, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear))


def count_positions(module: nn.Module, value: Tensor, num_samples: int) -> int:
    """Return the number of output positions of a sample: pixels, tokens, or 1.

    Args:
        module: The layer.
        value: Its input, [N, C, H, W], or tokens [..., C].
        num_samples: Samples of the batch.
    """
    if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
        height, width = _grid(module, value).size
        return height * width
    return value.numel() // (value.shape[-1] * num_samples)


def patches(module: nn.Module, value: Tensor, positions: Tensor) -> Tensor:
    """Return what a layer reads for some of its output positions, [N, P, groups, features].

    Features are the kernel's taps times the input channels of a group, in the order of `matrix`.

    Args:
        module: The layer.
        value: Its input.
        positions: Output positions of each sample, [N, P].
    """
    rows = torch.arange(len(positions), device=value.device)[:, None]
    positions = positions.to(value.device)
    if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
        grid = _grid(module, value)
        pixels = grid.padded(value).permute(0, 2, 3, 1).contiguous()
        first = grid.first_pixel(positions) + rows * (pixels.shape[1] * pixels.shape[2])
        chosen = first[:, :, None] + grid.taps.to(value.device)
        found = pixels.flatten(0, 2)[chosen]  # [N, P, taps, C]
        return found.unflatten(3, (module.groups, -1)).transpose(2, 3).flatten(3)
    return _tokens(module, value, len(positions))[rows, positions].unsqueeze(2)


def outputs(module: nn.Module, value: Tensor, positions: Tensor) -> Tensor:
    """Return a layer's output, or a tensor of its shape, at some positions, [N, P, outputs]."""
    rows = torch.arange(len(positions), device=value.device)[:, None]
    positions = positions.to(value.device)
    if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
        width = value.shape[3]
        return value[rows, :, positions // width, positions % width]
    return _tokens(module, value, len(positions))[rows, positions]


def matrix(module: nn.Module) -> Tensor:
    """Return a layer's weight as [groups, outputs of a group, features] (a view where possible)."""
    weight = _weight(module)
    if isinstance(module, nn.ConvTranspose2d):
        return weight.flip(2, 3).unflatten(0, (module.groups, -1)).permute(0, 2, 3, 4, 1).flatten(2)
    if isinstance(module, nn.Conv2d):
        return weight.unflatten(0, (module.groups, -1)).permute(0, 1, 3, 4, 2).flatten(2)
    return weight.unsqueeze(0)


@torch.no_grad()
def set_matrix(module: nn.Module, value: Tensor) -> None:
    """Set a layer's weight from [groups, outputs of a group, features], in the weight's own type."""
    weight = _weight(module)
    if isinstance(module, nn.ConvTranspose2d):
        taps = value.unflatten(2, (*weight.shape[2:], -1)).permute(0, 4, 1, 2, 3)
        weight.copy_(taps.flatten(0, 1).flip(2, 3))
    elif isinstance(module, nn.Conv2d):
        weight.copy_(value.unflatten(2, (*weight.shape[2:], -1)).permute(0, 1, 4, 2, 3).flatten(0, 1))
    else:
        weight.copy_(value.squeeze(0))


def offset(module: nn.Module) -> Tensor | None:
    """Return a layer's bias, [outputs], or None."""
    return module.in_proj_bias if isinstance(module, nn.MultiheadAttention) else module.bias  # type: ignore[return-value]


def _weight(module: nn.Module) -> Tensor:
    weight = module.in_proj_weight if isinstance(module, nn.MultiheadAttention) else module.weight
    assert isinstance(weight, Tensor)
    return weight


def _tokens(module: nn.Module, value: Tensor, num_samples: int) -> Tensor:
    """Return tokens [..., C] as [N, positions, C]."""
    if isinstance(module, nn.MultiheadAttention) and not module.batch_first:
        value = value.transpose(0, 1)
    return value.reshape(num_samples, -1, value.shape[-1])


@dataclass(frozen=True, kw_only=True)
class _Grid:
    """The windows of a convolution in its padded input.

    Attributes:
        spread: Pixels from one pixel of the input to the next in the padded one; more than 1 if transposed.
        padding: Pixels added left, right, above and below; fewer than none if they are cut off.
        mode: How they are filled.
        stride: Pixels from one window to the next, down and to the right.
        size: Windows down and to the right.
        width: Width of the padded input.
        taps: Pixels of a window, counted from its first one in the padded input, [taps].
    """

    spread: tuple[int, int]
    padding: tuple[int, int, int, int]
    mode: str
    stride: tuple[int, int]
    size: tuple[int, int]
    width: int
    taps: Tensor

    def padded(self, value: Tensor) -> Tensor:
        """Return the padded input."""
        if self.spread != (1, 1):
            height, width = ((length - 1) * step + 1 for length, step in zip(value.shape[2:], self.spread, strict=True))
            wide = value.new_zeros(*value.shape[:2], height, width)
            wide[:, :, :: self.spread[0], :: self.spread[1]] = value
            value = wide
        return functional.pad(value, self.padding, mode=self.mode)

    def first_pixel(self, positions: Tensor) -> Tensor:
        """Return the first pixel of the window of each output position, counted in the padded input."""
        rows, columns = positions // self.size[1], positions % self.size[1]
        return rows * (self.stride[0] * self.width) + columns * self.stride[1]


def _grid(module: nn.Conv2d | nn.ConvTranspose2d, value: Tensor) -> _Grid:
    kernel, dilation = module.kernel_size, module.dilation
    reach = [dilation[axis] * (kernel[axis] - 1) for axis in (0, 1)]
    if isinstance(module, nn.Conv2d):
        left, right, top, bottom = module._reversed_padding_repeated_twice
        spread, stride = (1, 1), (module.stride[0], module.stride[1])
        mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    else:
        spread, stride, mode = (module.stride[0], module.stride[1]), (1, 1), "constant"
        top, left = (reach[axis] - int(module.padding[axis]) for axis in (0, 1))
        bottom, right = top + module.output_padding[0], left + module.output_padding[1]
    height = (value.shape[2] - 1) * spread[0] + 1 + top + bottom
    width = (value.shape[3] - 1) * spread[1] + 1 + left + right
    down, across = (torch.arange(kernel[axis]) * dilation[axis] for axis in (0, 1))
    return _Grid(
        spread=spread,
        padding=(left, right, top, bottom),
        mode=mode,
        stride=stride,
        size=((height - reach[0] - 1) // stride[0] + 1, (width - reach[1] - 1) // stride[1] + 1),
        width=width,
        taps=(down[:, None] * width + across).flatten(),
    )
