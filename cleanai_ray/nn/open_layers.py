"""Layers that compute a linear map in a form of their own, as plain layers that compute the same.

- transformers' `Conv1D`, whose weight is [inputs, outputs]: a Linear layer.
- Such a layer that holds queries, keys and values of GPT-2's attention: three Linear layers (`PackedProjections`).
- A convolution that standardises its weight in each pass, as those of BiT and of NFNets: a convolution with that
  weight. Its weights depend on one another across input channels, so that none of them could go otherwise.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from cleanai_ray.nn.attention import linear_like
from cleanai_ray.nn.copying import copied

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


def opened_layers(model: nn.Module) -> dict[nn.Module, nn.Module]:
    """Return the plain layers that stand for layers of a model, by these; they share the weights where they can.

    A convolution's standardised weight is computed, and is a tensor of its own.
    """
    found: dict[nn.Module, nn.Module] = {}
    modules: Iterable[Any] = model.modules()
    for module in modules:
        if _holds_attention(module):
            found[module.c_attn] = _in_parts(module.c_attn)
        elif module not in found and _is_transposed(module):
            found[module] = linear_like(module.weight.detach().t(), module.bias, module.weight)
        elif isinstance(module, nn.Conv2d) and type(module).forward is not nn.Conv2d.forward:
            plain = _with_plain_weight(module)
            found |= {} if plain is None else {module: plain}
    for module, stands in found.items():
        stands.train(module.training)
    return found


def narrow_packed(owner: Any) -> None:
    """Update the widths that attention with packed projections repeats, once heads are gone from its layers."""
    packed = getattr(owner, "c_attn", None)
    if isinstance(packed, PackedProjections):
        owner.split_size = packed.v_proj.out_features
        owner.num_heads = owner.split_size // owner.head_dim


def _is_transposed(module: Any) -> bool:
    """Return whether a module is `Conv1D` as transformers has it, or a copy of that class in another package."""
    if type(module).__name__ != "Conv1D" or isinstance(module, nn.modules.conv._ConvNd):
        return False
    weight, bias = getattr(module, "weight", None), getattr(module, "bias", None)
    if not isinstance(weight, nn.Parameter) or weight.dim() != 2 or not isinstance(bias, nn.Parameter):
        return False
    if bias.shape != weight.shape[1:] or len(list(module.parameters())) != 2:
        return False
    tokens = torch.randn(1, 2, len(weight), generator=torch.Generator().manual_seed(0)).to(weight)
    with torch.no_grad():
        try:
            found = module.forward(tokens)
        except (RuntimeError, TypeError):
            return False
        expected = torch.addmm(bias, tokens[0], weight)[None]
    return _is_close(found, expected)


def _holds_attention(module: Any) -> bool:
    """Return whether a module is self-attention as GPT-2 has it: one `c_attn` for all, split at `split_size`."""
    counts = [getattr(module, name, None) for name in ("num_heads", "head_dim", "split_size")]
    layers = [getattr(module, name, None) for name in ("c_attn", "c_proj")]
    if not all(isinstance(count, int) and count > 0 for count in counts) or not all(map(_is_transposed, layers)):
        return False
    width: int = module.split_size
    fits = module.num_heads * module.head_dim == width == module.c_proj.weight.shape[0]
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
def _with_plain_weight(module: nn.Conv2d) -> nn.Conv2d | None:
    """Return a convolution with the weight that a module computes from its own, or None if it is something else.

    The weight must be the same whatever the input, and depend on the module's own across input channels.
    """
    sides = [size * step + _SIDE for size, step in zip(module.kernel_size, module.dilation, strict=True)]
    generator = torch.Generator().manual_seed(0)
    inputs = [
        torch.randn(1, module.in_channels, *(side + more for side in sides), generator=generator).to(module.weight)
        for more in (0, 1)
    ]
    try:
        trial = copied(module)
        weight, same = (_weight_in_use(trial, value) for value in inputs)
        outputs = [trial.forward(value) for value in inputs]
        if weight is None or not _is_own(module.weight, weight, same) or not _crosses_channels(trial, inputs[0]):
            return None
    except Exception:  # It cannot be copied by itself, or needs more than an input.
        return None
    form: dict[str, Any] = {name: getattr(module, name) for name in _FORM}
    plain = nn.Conv2d(**form, bias=module.bias is not None, device="meta")
    plain.weight = nn.Parameter(weight.clone(), requires_grad=module.weight.requires_grad)
    plain.bias = module.bias
    return plain if all(_is_close(plain(value), found) for value, found in zip(inputs, outputs, strict=True)) else None


def _weight_in_use(module: nn.Conv2d, value: Tensor) -> Tensor | None:
    """Return the weight of the one convolution that a module runs; None if it runs several."""
    with _Convolutions() as seen:
        module.forward(value)
    if len(seen.calls) != 1 or seen.calls[0].get("bias") is not module.bias:
        return None
    weight: Tensor = seen.calls[0]["weight"]
    return weight


def _is_own(weight: Tensor, first: Tensor, second: Tensor | None) -> bool:
    """Return whether what was used is another weight of the same shape, and the same for both inputs."""
    same = second is not None and torch.equal(first, second)
    return same and first.shape == weight.shape and not torch.equal(first, weight)


def _crosses_channels(trial: nn.Conv2d, value: Tensor) -> bool:
    """Return whether the weights of other input channels change with those of the first, which is changed."""
    if trial.weight.shape[1] == 1:
        return False
    before = _weight_in_use(trial, value)
    trial.weight[:, 0].add_(1.0)
    after = _weight_in_use(trial, value)
    return before is not None and after is not None and not _is_close(after[:, 1:], before[:, 1:])


def _is_close(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and bool(torch.allclose(one, other, rtol=1e-2, atol=1e-3))
