"""Consumers: the layers that read a pruned dimension, what they read, and their weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cleanai_ray.nn.patches import matrix, reads_patches

MAX_FEATURES = 4096
"""A Linear that reads more features than this is assumed to read a flattened feature map, channel by channel."""

Observer = Callable[[str, nn.Module, Tensor], None]

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass(frozen=True, kw_only=True)
class Consumer:
    """A layer whose weights can be refitted.

    Attributes:
        name: Module name.
        num_calls: Times it runs in one forward pass of the model.
        norm: The batch-norm that directly follows the layer and alone reads its output, or None.
        reads_samples: False if it reads as much of one sample as of two, as a layer of a position bias does.
    """

    name: str
    num_calls: int
    norm: str | None
    reads_samples: bool = True


def is_consumer(module: nn.Module) -> bool:
    """Return whether a module's output is one linear map of its input channels.

    That is so for Conv1d, Conv2d and Conv3d with groups=1, Linear, and in-projections of attention.

    A MultiheadAttention counts with its packed in-projection (query, key and value from one input).
    """
    if isinstance(module, _CONVOLUTIONS):
        return module.groups == 1
    if isinstance(module, nn.MultiheadAttention):
        return module.in_proj_weight is not None
    return isinstance(module, nn.Linear)


@contextmanager
def observing(model: nn.Module, names: Sequence[str], observer: Observer) -> Iterator[None]:
    """Call `observer(name, module, input)` before each of the named modules runs; no hook stays behind."""

    def hook(name: str) -> Any:
        def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            values = [*args, *kwargs.values()]
            if not isinstance(module, nn.MultiheadAttention) or (values[0] is values[1] and values[0] is values[2]):
                observer(name, module, values[0].detach())

        return before

    handles = [model.get_submodule(name).register_forward_pre_hook(hook(name), with_kwargs=True) for name in names]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def features_per_channel(module: nn.Module, kept: np.ndarray | None) -> int | None:
    """Return how many neighbouring input features of a layer belong to one channel, or None where that is unknown.

    It is 1 except for a Linear that reads more than MAX_FEATURES features: there, pruning removed whole channels of the
    flattened feature map, so every border between kept and removed features is a border between channels.
    """
    if not isinstance(module, nn.Linear) or module.in_features <= MAX_FEATURES:
        return 1
    if kept is None:
        return None
    mask = np.zeros(module.in_features, dtype=bool)
    mask[kept] = True
    size = math.gcd(module.in_features, *(int(edge) + 1 for edge in np.flatnonzero(np.diff(mask))))
    return size if size < module.in_features and module.in_features // size <= MAX_FEATURES else None


def as_positions(module: nn.Module, value: Tensor, num_samples: int, features: int = 1) -> Tensor:
    """Return what a consumer reads as [samples, positions, channels] (a view where possible).

    What does not come from the samples, as a table of positions does, is the same for each of them.

    Args:
        module: The consumer.
        value: Its input: [N, C, ...] of a convolution, or tokens [..., C].
        num_samples: Images of the batch.
        features: Features per channel of a flattened input.
    """
    if isinstance(module, _CONVOLUTIONS):
        value = value.expand(num_samples, *value.shape[1:]) if len(value) == 1 else value
        if max(module.kernel_size) == 1 and (isinstance(module.padding, str) or not any(module.padding)):
            value = value[(slice(None), slice(None), *(slice(None, None, step) for step in module.stride))]
        return value.flatten(2).transpose(1, 2)
    if isinstance(module, nn.MultiheadAttention) and not module.batch_first:
        value = value.transpose(0, 1)
    if value.shape[:-1].numel() % num_samples:
        value = value.reshape(1, -1, value.shape[-1]).expand(num_samples, -1, -1)
    else:
        value = value.reshape(num_samples, -1, value.shape[-1])
    if features > 1:
        value = value.unflatten(2, (-1, features)).transpose(2, 3).flatten(1, 2)
    return value


def kept_rows(module: nn.Module, kept: np.ndarray | None) -> Tensor:
    """Return the rows of a dense consumer's weight that its pruned copy kept, as indices."""
    if isinstance(module, nn.MultiheadAttention):
        channels = np.arange(module.embed_dim) if kept is None else kept
        return torch.as_tensor(np.concatenate([channels + part * module.embed_dim for part in range(3)]))
    return torch.arange(_weight(module).shape[0]) if kept is None else torch.as_tensor(kept)


def read_weight(module: nn.Module, features: int = 1) -> Tensor:
    """Return a consumer's weight as float64 [outputs, channels, kernel positions] on the CPU."""
    weight = _weight(module).detach().double().cpu()
    return weight.flatten(2) if weight.dim() > 2 else weight.unflatten(1, (-1, features))


@torch.no_grad()
def write_weight(module: nn.Module, value: Tensor) -> None:
    """Set a consumer's weight from [outputs, channels, kernel positions], in the weight's own type."""
    weight = _weight(module)
    weight.copy_(value.reshape(weight.shape))


@torch.no_grad()
def shift_output(model: nn.Module, consumer: Consumer, shift: Tensor) -> None:
    """Add a constant to each output of a consumer, [outputs].

    It goes into the bias; without one, into the running mean of the batch-norm that directly follows; without that,
    into a new bias.
    """
    module = model.get_submodule(consumer.name)
    field = "in_proj_bias" if isinstance(module, nn.MultiheadAttention) else "bias"
    bias = getattr(module, field)
    if bias is not None:
        bias.add_(shift.to(bias))
    elif consumer.norm is not None:
        mean = model.get_submodule(consumer.norm).running_mean
        assert isinstance(mean, Tensor)
        mean.sub_(shift.to(mean))
    else:
        weight = _weight(module)
        setattr(module, field, nn.Parameter(shift.to(weight), requires_grad=weight.requires_grad))


def can_be_shifted(module: nn.Module) -> bool:
    """Return whether repair may add a constant to a module's outputs, for which it gets a bias if it has none."""
    return is_consumer(module) or reads_patches(module)


def add_biases(model: nn.Module, names: Iterable[str]) -> None:
    """Give layers without a bias one of zeros, so that a model can take the weights of a repaired copy of itself.

    Args:
        model: The model, which is changed.
        names: Parameter names of the copy, for instance of its state; those that the model has already are skipped.
    """
    known = set(model.state_dict())
    for name in names:
        owner, _, field = name.rpartition(".")
        if (
            name not in known
            and field in ("bias", "in_proj_bias")
            and can_be_shifted(module := model.get_submodule(owner))
        ):
            weight = _weight(module)
            outputs = matrix(module).shape[:2].numel() if reads_patches(module) else len(weight)
            bias = nn.Parameter(weight.new_zeros(outputs), requires_grad=weight.requires_grad)
            setattr(module, field, bias)


def _weight(module: nn.Module) -> nn.Parameter:
    weight = module.in_proj_weight if isinstance(module, nn.MultiheadAttention) else module.weight
    assert isinstance(weight, nn.Parameter)
    return weight
