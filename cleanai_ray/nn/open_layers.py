"""Layers that compute a linear map in a form of their own, as plain layers that compute the same.

- transformers' `Conv1D`, whose weight is [inputs, outputs]: a Linear layer.
- Such a layer that holds queries, keys and values of GPT-2's attention: three Linear layers (`PackedProjections`).
- A convolution that standardises its weight in each pass, as those of BiT and of NFNets: a convolution with that
  weight. Its weights depend on one another across input channels, so that none of them could go otherwise.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from cleanai_ray.nn.attention import linear_like
from cleanai_ray.nn.copying import copied
from cleanai_ray.nn.forms import KnownForms

M = TypeVar("M", bound=nn.Module)

_ALLOWED: ContextVar[frozenset[str] | None] = ContextVar("allowed", default=None)
"""Names of the layers that may be opened; None: all."""

_STANDS_FOR = "_cleanai_stands_for"
"""A plain string on a layer that was opened, the class that it had, so that copies of the layer have it."""

_PARTS = 3
_FORM = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups")
_SIDE = 3
"""Pixels beyond the kernel of the maps on which convolutions are tried."""


class PackedProjections(nn.Module):
    """Stands for one layer that computes queries, keys and values beside each other.

    Args:
        projections: The layers of queries, keys and values.
    """

    def __init__(self, projections: tuple[nn.Linear, nn.Linear, nn.Linear]) -> None:
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj = projections

    def forward(self, tokens: Tensor) -> Tensor:
        """Return [..., queries + keys + values] for tokens [..., channels]."""
        return torch.cat([self.q_proj(tokens), self.k_proj(tokens), self.v_proj(tokens)], dim=-1)


@contextmanager
def only_opening(names: Collection[str]) -> Iterator[None]:
    """Let `opened_layers` open none but the layers of these names, as for a plan that tells which it opened."""
    token = _ALLOWED.set(frozenset(names))
    try:
        yield
    finally:
        _ALLOWED.reset(token)


def opened_layers(model: nn.Module) -> dict[nn.Module, nn.Module]:
    """Return the plain layers that stand for layers of a model, by these; they share the weights where they can.

    Which layers these are does not depend on their weights. A convolution's standardised weight is computed, and is a
    tensor of its own.
    """
    found: dict[nn.Module, nn.Module] = {}
    allowed = _ALLOWED.get()
    for name, module in _candidates(model):
        if allowed is not None and name not in allowed:
            continue
        if isinstance(module, nn.Conv2d):
            plain = _with_plain_weight(module)
            found |= {} if plain is None else {module: plain}
        elif _is_transposed(module):
            found[module] = linear_like(module.weight.detach().t(), module.bias, module.weight)
    for module in _modules(model):
        if getattr(module, "c_attn", None) in found and _holds_attention(module, found):
            found[module.c_attn] = _in_parts(module.c_attn)
    for module, stands in found.items():
        stands.train(module.training)
        setattr(stands, _STANDS_FOR, type(module).__name__)
    return found


def names_of_opened(model: nn.Module) -> list[str]:
    """Return the names of the layers of an opened model that stand for layers of another form, in order."""
    return [name for name, module in model.named_modules() if hasattr(module, _STANDS_FOR)]


def is_open(layer: nn.Module) -> bool:
    """Return whether a layer is plain, or stands for one that was not."""
    return isinstance(layer, (nn.Linear, PackedProjections)) or type(layer).forward is nn.Conv2d.forward


def _modules(model: nn.Module) -> Iterable[Any]:
    return model.modules()


def _candidates(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Yield the layers that may compute a linear map in another form than torch's own, by name."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            if type(module).forward is not nn.Conv2d.forward:
                yield name, module
        elif type(module).__name__ == "Conv1D":
            yield name, module


def narrow_packed(owner: Any) -> None:
    """Update the widths that attention with packed projections repeats, once heads are gone from its layers."""
    packed = getattr(owner, "c_attn", None)
    if isinstance(packed, PackedProjections):
        owner.split_size = packed.v_proj.out_features
        owner.num_heads = owner.split_size // owner.head_dim


def _is_transposed(module: Any) -> bool:
    """Return whether a module is `Conv1D` as transformers has it, or a copy of that class in another package."""
    if isinstance(module, nn.modules.conv._ConvNd):
        return False
    weight, bias = getattr(module, "weight", None), getattr(module, "bias", None)
    if not isinstance(weight, nn.Parameter) or weight.dim() != 2 or not isinstance(bias, nn.Parameter):
        return False
    if bias.shape != weight.shape[1:] or len(list(module.parameters())) != 2:
        return False
    return _multiplies_from_the_right(module)


@torch.no_grad()
def _is_addmm(module: Any) -> bool:
    """Return whether a module adds its bias to the product of tokens and its weight, on random weights."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randn(1, 2, len(module.weight), generator=generator, dtype=torch.float64)
    try:
        trial = _trial(module, generator)
        found = trial.forward(tokens)
    except Exception:  # It cannot be copied by itself, or needs more than an input.
        return False
    return _is_close(found, torch.addmm(trial.bias, tokens[0], trial.weight)[None])


_multiplies_from_the_right = KnownForms(_is_addmm)


def _holds_attention(module: Any, found: Mapping[nn.Module, nn.Module]) -> bool:
    """Return whether a module is self-attention as GPT-2 has it: one `c_attn` for all, split at `split_size`."""
    counts = [getattr(module, name, None) for name in ("num_heads", "head_dim", "split_size")]
    output: Any = getattr(module, "c_proj", None)
    if not all(isinstance(count, int) and count > 0 for count in counts) or output not in found:
        return False
    width: int = module.split_size
    fits = module.num_heads * module.head_dim == width == output.weight.shape[0]
    return fits and bool(module.c_attn.weight.shape[1] == _PARTS * width)


def _in_parts(packed: Any) -> PackedProjections:
    width = packed.weight.shape[1] // _PARTS
    weights, biases = packed.weight.detach().split(width, dim=1), packed.bias.detach().split(width)
    query, key, value = (
        linear_like(weight.t(), bias, packed.weight) for weight, bias in zip(weights, biases, strict=True)
    )
    return PackedProjections((query, key, value))


class _Convolutions(TorchFunctionMode):
    """Notes the arguments of each two-dimensional convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[dict[str, Any]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.conv2d:
            names = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
            self.calls.append(dict(zip(names, args, strict=False)) | (kwargs or {}))
        return func(*args, **(kwargs or {}))


@torch.no_grad()
def _trial(module: M, generator: torch.Generator) -> M:
    """Return a copy of a module with random weights, in evaluation mode and float64 on the CPU."""
    trial = copied(module).cpu().double().eval()
    for parameter in trial.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return trial


@torch.no_grad()
def _with_plain_weight(module: nn.Conv2d) -> nn.Conv2d | None:
    """Return a convolution with the weight that a module computes from its own, or None if it is something else.

    The weight must be the same whatever the input, and depend on the module's own across input channels. Whether it
    does is found out on random weights: those of a module may be such that computing it changes nothing. It is found
    out once for all modules of a form.
    """
    try:
        if not _standardises(module):
            return None
        weight = _run(copied(module), _maps(module)[0].to(module.weight))[1]
    except Exception:  # It cannot be copied by itself, or needs more than an input.
        return None
    return None if weight is None else _plain(module, weight)


def _maps(module: nn.Conv2d) -> list[Tensor]:
    """Return two inputs of a convolution, of other sizes, float64."""
    sides = [size * step + _SIDE for size, step in zip(module.kernel_size, module.dilation, strict=True)]
    generator = torch.Generator().manual_seed(0)
    sizes = [[side + more for side in sides] for more in (0, 1)]
    return [torch.randn(1, module.in_channels, *size, generator=generator).double() for size in sizes]


@torch.no_grad()
def _is_computed(module: nn.Conv2d) -> bool:
    """Return whether a convolution computes its weight from its own, whatever the latter is."""
    inputs = _maps(module)
    return _computes_its_weight(_trial(module, torch.Generator().manual_seed(1)), inputs)


_standardises = KnownForms(_is_computed)


def _computes_its_weight(trial: nn.Conv2d, inputs: Sequence[Tensor]) -> bool:
    """Return whether a convolution with random weights is a plain one with another weight, in both modes."""
    for training in (True, False):
        trial.train(training)
        outputs, weights = zip(*(_run(trial, value) for value in inputs), strict=True)
        used = weights[0]
        if used is None or used.shape != trial.weight.shape or torch.equal(used, trial.weight):
            return False
        if not all(weight is not None and torch.equal(weight, used) for weight in weights):
            return False
        plain = _plain(trial, used)
        if not all(_is_close(found, plain(value)) for found, value in zip(outputs, inputs, strict=True)):
            return False
    return _crosses_channels(trial, inputs[0], used)


def _plain(module: nn.Conv2d, weight: Tensor) -> nn.Conv2d:
    form: dict[str, Any] = {name: getattr(module, name) for name in _FORM}
    plain = nn.Conv2d(**form, bias=module.bias is not None, device="meta")
    plain.weight = nn.Parameter(weight.clone(), requires_grad=module.weight.requires_grad)
    plain.bias = module.bias
    return plain


def _run(module: nn.Conv2d, value: Tensor) -> tuple[Tensor, Tensor | None]:
    """Return the output of a module, and the weight of the one convolution that it runs; None if it runs several."""
    with _Convolutions() as seen:
        output = module.forward(value)
    if len(seen.calls) != 1 or seen.calls[0].get("bias") is not module.bias:
        return output, None
    return output, seen.calls[0]["weight"]


def _crosses_channels(trial: nn.Conv2d, value: Tensor, before: Tensor) -> bool:
    """Return whether the weights of other input channels change with those of the first, which is changed."""
    if trial.weight.shape[1] == 1:
        return False
    before = before.clone()
    trial.weight[:, 0].add_(1.0)
    after = _run(trial, value)[1]
    return after is not None and not _is_close(after[:, 1:], before[:, 1:])


def _is_close(one: Any, other: Tensor) -> bool:
    return isinstance(one, Tensor) and one.shape == other.shape and bool(torch.allclose(one, other))
