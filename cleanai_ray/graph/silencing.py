"""The meaning of a cut: a pruned model computes what the dense one computes once the removed channels are silent.

Silent are, in the dense model, the removed outputs of every layer and all that other layers read of them: they are
zero, and norms over channels run on the others alone. What every layer then reads in the channels that stay is what it
must read in the pruned model. Nothing of this is taken from the index mappings, which it therefore checks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from cleanai_ray.graph.channelwise import channelwise_width
from cleanai_ray.graph.cutting import Cuts, cut, cut_layer
from cleanai_ray.nn.attention import HeadChannels
from cleanai_ray.nn.calls import tensors_in
from cleanai_ray.nn.copying import copied, leaving_no_trace
from cleanai_ray.nn.modes import evaluation_mode

TOLERANCE = 1e-3
"""Largest difference that rounding may make in float32, as a share of the largest value."""

OUTPUT = "the output"
Reading = list[tuple[str, Tensor]]
"""What layers read, in the order in which they ran, and what the model returned."""

_CHANNELS_SECOND = (_NormBase, nn.GroupNorm, nn.PReLU)


def can_be_silenced(layer: nn.Module) -> bool:
    """Return whether a layer without some channels computes what it computes when they are zero: attention does not."""
    return not isinstance(layer, (nn.MultiheadAttention, nn.RNNBase))


def probe_inputs(example: Tensor) -> Tensor:
    """Return one sample of the form of example inputs; where they are all the same number, it is random."""
    sample = example[:1].detach()
    if sample.is_floating_point() and bool((sample == sample.flatten()[0]).all()):
        return torch.randn(sample.shape, generator=torch.Generator().manual_seed(0)).to(sample)
    return sample


@torch.no_grad()
def silenced(model: nn.Module, inputs: Tensor, cuts: Cuts, parameters: Mapping[str, int]) -> Reading:
    """Return what is read and returned when the channels of cuts are silent, without those channels.

    Args:
        model: The model before the cut; it is left as it was.
        inputs: Its input.
        cuts: The channels.
        parameters: The dimension of each free parameter that has channels, by name.
    """
    reading: Reading = []
    with (
        evaluation_mode(model),
        leaving_no_trace(model),
        _silent_parameters(model, cuts, parameters),
        _hooked() as handles,
    ):
        for name, owner in _norms_of(model, cuts, parameters).items():
            handles.append(owner.register_forward_hook(_on_the_others(cuts, parameters, name)))
        for (name, side), channels in cuts.items():
            if name in parameters:
                continue
            layer = model.get_submodule(name)
            if _reads(layer, side):
                handles.append(layer.register_forward_pre_hook(_silent_input(name, channels, reading)))
            if side == "both" and isinstance(layer, (nn.LayerNorm, nn.GroupNorm)):
                handles.append(layer.register_forward_hook(_norm_of_the_others(channels)))
            elif side != "in":
                handles.append(layer.register_forward_hook(_silent_output(channels)))
        reading += [(OUTPUT, value) for value in tensors_in(_run(model, inputs))]
    return reading


@torch.no_grad()
def read(model: nn.Module, inputs: Tensor, cuts: Cuts, parameters: Mapping[str, int]) -> Reading:
    """Return the same of the model after the cut."""
    reading: Reading = []
    with evaluation_mode(model), leaving_no_trace(model), _hooked() as handles:
        for name, side in cuts:
            if name not in parameters and _reads(model.get_submodule(name), side):
                handles.append(model.get_submodule(name).register_forward_pre_hook(_note(name, reading)))
        reading += [(OUTPUT, value) for value in tensors_in(_run(model, inputs))]
    return reading


def difference(expected: Reading, found: Reading) -> str | None:
    """Return the name of the first layer that reads something else, or `OUTPUT`; None if all is the same."""
    if [name for name, _ in expected] != [name for name, _ in found]:
        return OUTPUT
    for (name, wanted), (_, value) in zip(expected, found, strict=True):
        if wanted.shape != value.shape or not is_close(wanted, value):
            return name
    return None


def _reads(layer: nn.Module, side: str) -> bool:
    return side != "out" and not isinstance(layer, nn.Embedding)


def is_close(wanted: Tensor, value: Tensor) -> bool:
    """Return whether two tensors of one shape are the same, but for rounding."""
    if wanted.is_complex():
        return value.is_complex() and is_close(torch.view_as_real(wanted), torch.view_as_real(value))
    if not wanted.is_floating_point() or not wanted.numel():
        return torch.equal(wanted, value)
    rounding = TOLERANCE * max(1.0, torch.finfo(wanted.dtype).eps / torch.finfo(torch.float32).eps) ** 0.5
    wide = torch.float64 if wanted.dtype == torch.float64 else torch.float32
    wanted, value = wanted.to(wide), value.to(wide)
    largest = torch.nan_to_num(wanted, posinf=0.0, neginf=0.0).abs().max().item()
    return torch.allclose(value, wanted, rtol=rounding, atol=rounding * largest + 1e-7, equal_nan=True)


def _run(model: nn.Module, inputs: Tensor) -> Any:
    with torch.random.fork_rng(devices=[inputs.device] if inputs.is_cuda else []):
        torch.manual_seed(0)
        return model(inputs)


@contextmanager
def _hooked() -> Iterator[list[Any]]:
    handles: list[Any] = []
    try:
        yield handles
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _silent_parameters(model: nn.Module, cuts: Cuts, parameters: Mapping[str, int]) -> Iterator[None]:
    found = {name: channels for (name, _), channels in cuts.items() if name in parameters}
    dense = {name: model.get_parameter(name).detach().clone() for name in found}
    try:
        for name, channels in found.items():
            model.get_parameter(name).index_fill_(parameters[name], _index(channels, dense[name]), 0.0)
        yield
    finally:
        for name, value in dense.items():
            model.get_parameter(name).copy_(value)


def _norms_of(model: nn.Module, cuts: Cuts, parameters: Mapping[str, int]) -> dict[str, nn.Module]:
    """Return the modules that have nothing but free parameters with one value a channel, as norms have."""
    owners = {name.rpartition(".")[0] for name, _ in cuts if name in parameters}
    found = {}
    for name in owners:
        module = model.get_submodule(name)
        own = [f"{name}.{each}".lstrip(".") for each, _ in module.named_parameters()]
        if own and all(
            each in parameters
            and model.get_parameter(each).numel() == model.get_parameter(each).shape[parameters[each]]
            for each in own
        ):
            found[name] = module
    return found


def _on_the_others(cuts: Cuts, parameters: Mapping[str, int], name: str) -> Any:
    own = {
        key: channels for key, channels in cuts.items() if key[0].rpartition(".")[0] == name and key[0] in parameters
    }
    prefix = f"{name}." if name else ""
    inner: Cuts = {(layer.removeprefix(prefix), side): channels for (layer, side), channels in own.items()}
    dims = {layer: parameters[prefix + layer] for layer, _ in inner}
    channels = next(iter(own.values()))

    def hook(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        smaller = copied(module)
        smaller._forward_hooks.clear()
        if not isinstance(output, Tensor) or output.shape != args[0].shape:
            return output
        layer, _ = next(iter(inner))
        axis = _axis_of(module.get_parameter(layer), dims[layer], args[0])
        cut(smaller, inner, dims)
        return _within(smaller, args[0], channels, axis)

    return hook


def _axis_of(parameter: Tensor, dim: int, value: Tensor) -> int:
    """Return the dimension of a value that a parameter has one entry for each of.

    The shape of a parameter says where it is, [C, 1, 1] before two others; if that does not fit, the second is taken.
    """
    axis = dim - parameter.dim()
    fits = value.dim() >= -axis and value.shape[axis] == parameter.shape[dim]
    return axis if fits else 1


def _norm_of_the_others(channels: np.ndarray) -> Any:
    def hook(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        smaller = copied(module)
        smaller._forward_hooks.clear()
        smaller._forward_pre_hooks.clear()
        cut_layer(smaller, "both", channels)
        return _within(smaller, args[0], channels, channel_axis(module, args[0]))

    return hook


def _within(norm: nn.Module, value: Tensor, channels: np.ndarray, axis: int) -> Tensor:
    stay = _index(np.delete(np.arange(value.shape[axis]), channels), value)
    part = norm(value.index_select(axis, stay))
    return torch.zeros_like(value, dtype=part.dtype).index_copy(axis, stay, part)


def _silent_input(name: str, channels: np.ndarray, reading: Reading) -> Any:
    def hook(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if not args or not isinstance(args[0], Tensor):
            return None
        axis = channel_axis(module, args[0])
        stay = _index(np.delete(np.arange(args[0].shape[axis]), channels), args[0])
        reading.append((name, args[0].index_select(axis, stay)))
        return (_without(args[0], channels, axis), *args[1:])

    return hook


def _silent_output(channels: np.ndarray) -> Any:
    def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        return _without(output, channels, channel_axis(module, output)) if isinstance(output, Tensor) else output

    return hook


def _note(name: str, reading: Reading) -> Any:
    def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
        if args and isinstance(args[0], Tensor):
            reading.append((name, args[0].clone()))

    return hook


def _without(value: Tensor, channels: np.ndarray, axis: int) -> Tensor:
    return value.index_fill(axis, _index(channels, value), 0) if value.is_floating_point() else value


def _index(channels: np.ndarray, value: Tensor) -> Tensor:
    return torch.as_tensor(channels, dtype=torch.int64, device=value.device)


@torch.no_grad()
def _normalises_maps(norm: nn.LayerNorm, num_dims: int) -> bool:
    """Return whether a kind of layer-norm takes channels in the second dimension, by trying."""
    width = norm.normalized_shape[-1]
    sizes = [size for size in range(2, num_dims + 1) if size != width]  # small: a map of width x width fills the memory
    value = norm.weight.new_zeros(1, width, *sizes[: num_dims - 2])
    try:
        norm.forward(value)
    except (RuntimeError, ValueError):
        return False
    return True


def channel_axis(module: nn.Module, value: Tensor) -> int:
    """Return the dimension of what a layer reads or computes that holds its channels."""
    if isinstance(module, _ConvNd):
        return value.dim() - module.weight.dim() + 1
    if isinstance(module, _CHANNELS_SECOND):
        return 1
    width = channelwise_width(module)
    if width is not None:
        return 1 if value.shape[1] == width else -1
    if isinstance(module, nn.LayerNorm) and type(module) is not nn.LayerNorm and value.dim() > 3:
        return 1 if _normalises_maps(module, value.dim()) else -1
    assert isinstance(module, (nn.Linear, nn.LayerNorm, nn.Embedding, HeadChannels)), type(module).__name__
    return -1
