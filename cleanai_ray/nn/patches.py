"""Layers as linear maps of patches: what a layer reads for one output position, and its weight as a matrix."""

from __future__ import annotations

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
        height, width = _windows(module, value[:1]).shape[2:4]
        return height * width
    return value.numel() // (value.shape[-1] * num_samples)


def patches(module: nn.Module, value: Tensor, positions: Tensor) -> Tensor:
    """Return what a layer reads for some of its output positions, [N, P, groups, features].

    Features are the input channels of a group times the kernel's taps, in the order of `matrix`.

    Args:
        module: The layer.
        value: Its input.
        positions: Output positions of each sample, [N, P].
    """
    rows = torch.arange(len(positions), device=value.device)[:, None]
    positions = positions.to(value.device)
    if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
        windows = _windows(module, value)
        width = windows.shape[3]
        return windows[rows, :, positions // width, positions % width].unflatten(2, (module.groups, -1)).flatten(3)
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
        grouped = weight.flip(2, 3).unflatten(0, (module.groups, -1)).transpose(1, 2)
        return grouped.flatten(2)
    groups = module.groups if isinstance(module, nn.Conv2d) else 1
    return weight.unflatten(0, (groups, -1)).flatten(2)


@torch.no_grad()
def set_matrix(module: nn.Module, value: Tensor) -> None:
    """Set a layer's weight from [groups, outputs of a group, features], in the weight's own type."""
    weight = _weight(module)
    if isinstance(module, nn.ConvTranspose2d):
        taps = value.unflatten(2, (-1, *weight.shape[2:])).transpose(1, 2)
        weight.copy_(taps.flatten(0, 1).flip(2, 3))
    else:
        weight.copy_(value.reshape(weight.shape))


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


def _windows(module: nn.Conv2d | nn.ConvTranspose2d, value: Tensor) -> Tensor:
    """Return the window of every output position, [N, C, H, W, kernel height, kernel width], as a view."""
    kernel, dilation = module.kernel_size, module.dilation
    if isinstance(module, nn.Conv2d):
        stride = module.stride
        mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
        value = functional.pad(value, module._reversed_padding_repeated_twice, mode=mode)
    else:
        value, stride = _spread(module, value), (1, 1)
    for axis in (0, 1):
        value = value.unfold(2 + axis, (kernel[axis] - 1) * dilation[axis] + 1, stride[axis])
    return value[..., :: dilation[0], :: dilation[1]]


def _spread(module: nn.ConvTranspose2d, value: Tensor) -> Tensor:
    """Return the input of a transposed convolution as that of an equal plain one, with zeros between pixels."""
    stride, before, after = module.stride, [], []
    for axis in (0, 1):
        reach = module.dilation[axis] * (module.kernel_size[axis] - 1)
        before.append(reach - int(module.padding[axis]))
        after.append(before[axis] + module.output_padding[axis])
    height, width = ((value.shape[2 + axis] - 1) * stride[axis] + 1 for axis in (0, 1))
    spread = value.new_zeros(*value.shape[:2], height, width)
    spread[:, :, :: stride[0], :: stride[1]] = value
    return functional.pad(spread, (before[1], after[1], before[0], after[0]))
