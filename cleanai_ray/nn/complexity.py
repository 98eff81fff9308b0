"""Parameters, multiply-accumulates and file size of a model, as a whole and of each layer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils.rnn import PackedSequence
from torch.utils.flop_counter import FlopCounterMode

from cleanai_ray.nn.attention import HeadProduct
from cleanai_ray.nn.copying import leaving_no_trace
from cleanai_ray.nn.hooks import require_no_hooks
from cleanai_ray.nn.modes import evaluation_mode
from cleanai_ray.nn.weights import safetensors_bytes

_RECURRENT = (nn.RNNBase, nn.RNNCellBase)
_COUNTED = (_ConvNd, nn.Linear, nn.MultiheadAttention, HeadProduct, *_RECURRENT)


@dataclass(frozen=True)
class LayerComplexity:
    """The cost of one convolution, Linear, MultiheadAttention, product of heads or recurrent layer, with batch size 1.

    Attributes:
        name: Name of the module in the model.
        index: Position in execution order, from 0 (of its first call).
        kind: Class of the module.
        in_channels: Input channels or features (embedding size of attention; query and value channels of a product).
        out_channels: Output channels or features.
        params: Parameters, those of submodules included.
        macs: Multiply-accumulates, summed over all its calls in one forward pass.
    """

    name: str
    index: int
    kind: str
    in_channels: int
    out_channels: int
    params: int
    macs: int


@dataclass(frozen=True)
class Complexity:
    """The cost of a model.

    Attributes:
        params: Parameters; shared ones count once.
        macs: Multiply-accumulates of convolutions, matrix products and attention in one forward pass, batch 1.
            FLOPs are twice that. Norms, activations, pooling and additions are not counted.
        size_bytes: Size of the model's safetensors file, buffers included.
        layers: The layers that ran, in execution order. Products outside of layers count in `macs` only.
    """

    params: int
    macs: int
    size_bytes: int
    layers: tuple[LayerComplexity, ...]


@dataclass
class _LayerMeter:
    """Adds up the operations that happen between a layer's pre-hook and its hook."""

    counter: FlopCounterMode
    module: nn.Module
    name: str
    index: int | None = None
    flops: int = 0
    missed: int = 0
    _starts: list[int] = field(default_factory=list)

    def start(self) -> None:
        self._starts.append(self.counter.get_total_flops())

    def stop(self, output: Any) -> None:
        counted = self.counter.get_total_flops() - self._starts.pop()
        if isinstance(self.module, _RECURRENT):  # Fused kernels do all steps, and are not counted.
            self.missed += 2 * _recurrent_macs(self.module, output) - counted
            counted = 2 * _recurrent_macs(self.module, output)
        self.flops += counted

    def result(self) -> LayerComplexity:
        inputs, outputs = _channels(self.module)
        params = sum(parameter.numel() for parameter in self.module.parameters())
        assert self.index is not None
        kind = type(self.module).__name__
        return LayerComplexity(self.name, self.index, kind, inputs, outputs, params, self.flops // 2)


def _channels(module: nn.Module) -> tuple[int, int]:
    if isinstance(module, _ConvNd):
        return module.in_channels, module.out_channels
    if isinstance(module, nn.Linear):
        return module.weight.shape[1], module.weight.shape[0]
    if isinstance(module, nn.RNNBase):
        return module.input_size, (module.proj_size or module.hidden_size) * (1 + module.bidirectional)
    if isinstance(module, nn.RNNCellBase):
        return module.input_size, module.hidden_size
    if isinstance(module, HeadProduct):
        return module.num_heads * (module.query_dim + module.value_dim), module.num_heads * module.value_dim
    assert isinstance(module, nn.MultiheadAttention)
    return module.embed_dim, module.out_proj.weight.shape[0]


def _recurrent_macs(module: nn.Module, output: Any) -> int:
    """Return the multiply-accumulates of one call: every weight of a matrix counts once for each step and sample."""
    states = output if isinstance(output, Tensor) else output[0]
    values = states.data if isinstance(states, PackedSequence) else states
    steps = values.numel() // values.shape[-1]
    return steps * sum(weight.numel() for weight in module.parameters() if weight.dim() > 1)


@contextmanager
def _countable_attention() -> Iterator[None]:
    """Make attention run as matrix products.

    FlopCounterMode knows neither the fused kernels of nn.MultiheadAttention's fast path nor the CPU's fused
    scaled-dot-product attention, and would count nothing for them.
    """
    fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)


@contextmanager
def _without_gradients(model: nn.Module) -> Iterator[None]:
    """Let no parameter need gradients; FlopCounterMode refuses one that a module is called with (a class token)."""
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        for parameter, _ in flags:
            parameter.requires_grad_(False)
        with torch.no_grad():
            yield
    finally:
        for parameter, flag in flags:
            parameter.requires_grad_(flag)


@contextmanager
def _metered(model: nn.Module, counter: FlopCounterMode) -> Iterator[list[_LayerMeter]]:
    """Hook every counted layer; yield the meters of those that run, in the order in which they are first called."""
    ran: list[_LayerMeter] = []
    handles = []

    def before(meter: _LayerMeter) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            if meter.index is None:
                meter.index = len(ran)
                ran.append(meter)
            meter.start()

        return hook

    def after(meter: _LayerMeter) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            meter.stop(output)

        return hook

    try:
        for name, module in model.named_modules():
            if isinstance(module, _COUNTED):
                meter = _LayerMeter(counter, module, name)
                handles.append(module.register_forward_pre_hook(before(meter)))
                handles.append(module.register_forward_hook(after(meter)))
        yield ran
    finally:
        for handle in handles:
            handle.remove()


def measure_complexity(model: nn.Module, example_input: Tensor) -> Complexity:
    """Count a model's parameters, multiply-accumulates and bytes.

    Operations are counted by `torch.utils.flop_counter.FlopCounterMode`, which sees what is dispatched: subclasses of
    Conv2d, functional calls and attention included. Recurrent layers are counted by their weights and steps. The model
    is left as it was, with no hook on it.

    Args:
        model: Any module that takes one tensor.
        example_input: Images [N, ...]; the first is used. It is moved to where the model is.

    Raises:
        EvaluationError: When a hook is left on the model.
    """
    require_no_hooks(model)
    parameter = next(model.parameters(), None)
    example = example_input[:1] if parameter is None else example_input[:1].to(parameter.device)
    counter = FlopCounterMode(display=False)
    with evaluation_mode(model), leaving_no_trace(model), _without_gradients(model), _countable_attention():
        with _metered(model, counter) as meters, counter:
            model(example)
        layers = tuple(meter.result() for meter in meters)
    return Complexity(
        params=sum(parameter.numel() for parameter in model.parameters()),
        macs=(counter.get_total_flops() + sum(meter.missed for meter in meters)) // 2,
        size_bytes=len(safetensors_bytes(model)),
        layers=layers,
    )
