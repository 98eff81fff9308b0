"""From attention with packed projections, and layers of other forms, to separate plain layers that compute the same."""

from __future__ import annotations

import inspect
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from cleanai_ray.nn.attention import HeadProduct, OpenAttention, OpenMultiheadAttention, OpenSelfAttention, linear_like
from cleanai_ray.nn.copying import copied
from cleanai_ray.nn.forms import KnownForms
from cleanai_ray.nn.open_layers import opened_layers
from cleanai_ray.nn.view import shared_copy
from cleanai_ray.nn.window_attention import OpenWindowAttention

M = TypeVar("M", bound=nn.Module)

_ARGUMENTS = {"attn_mask", "is_causal"}
"""Arguments besides the tokens that self-attention with packed projections may have."""

_WINDOWS = "torchvision.models.swin_transformer.ShiftedWindowAttention"

_PROBE = (2, 5)
"""Samples and tokens on which a replacement is compared."""


def open_attention(model: M) -> M:
    """Return a model whose attention is in separate plain layers, or the model itself if there is nothing to open.

    The result computes the same, and has all weights of the model: it shares their memory, and must not be trained.
    Opened are `nn.MultiheadAttention`, torchvision's attention in windows, and self-attention with a packed layer `qkv`
    as timm writes it. The latter is known by its layers. Whether it is nothing else (rotated queries, a bias by
    relative position) is found out on random weights and tokens, once for all modules of a form, and so does not depend
    on the weights of the model.
    Plain layers stand for those of `open_layers` as well. What is opened stays open: the function changes nothing on a
    second call.
    """
    found: dict[nn.Module, nn.Module] = opened_layers(model)
    for module in model.modules():
        opened = _opened(module)
        if opened is not None:
            found[module] = opened
    if not found:
        return model
    result = shared_copy(model, found)
    for module in result.modules():
        if isinstance(module, nn.TransformerEncoder):
            module.use_nested_tensor = False  # Nested tensors are for the fused path alone.
    return result


def _opened(module: nn.Module) -> OpenAttention | None:
    """Return the module in separate layers that share its weights, or None if it is no attention that can be opened."""
    if type(module) is nn.MultiheadAttention:
        opened = _open_multihead(module)
    elif f"{type(module).__module__}.{type(module).__name__}" == _WINDOWS:
        opened = OpenWindowAttention(*_parts(module, module.attention_dropout), module)  # type: ignore[arg-type]
    elif _looks_packed(module) and _is_plain_attention(module):
        opened = _open_packed(module)
    else:
        return None
    if opened is not None:
        opened.train(module.training)
    return opened


def _open_multihead(module: nn.MultiheadAttention) -> OpenAttention | None:
    if module.bias_k is not None or module.add_zero_attn:
        return None
    size, like = module.embed_dim, module.out_proj.weight
    if module.in_proj_weight is not None:
        weights = list(module.in_proj_weight.detach().split(size))
        like = module.in_proj_weight
    else:
        weights = [getattr(module, f"{name}_proj_weight") for name in "qkv"]
    biases: Any = [None] * 3 if module.in_proj_bias is None else module.in_proj_bias.detach().split(size)
    query, key, value = (linear_like(weight, bias, like) for weight, bias in zip(weights, biases, strict=True))
    dim = size // module.num_heads
    output = module.out_proj
    return OpenMultiheadAttention(
        (query, key, value),
        HeadProduct(module.num_heads, dim, dim, dim**-0.5, module.dropout),
        linear_like(output.weight, output.bias, output.weight),
        module.batch_first,
    )


def _looks_packed(module: Any) -> bool:
    layers, number = (getattr(module, "qkv", None), getattr(module, "proj", None)), getattr(module, "num_heads", None)
    if not all(isinstance(layer, nn.Linear) for layer in layers) or not isinstance(number, int) or number < 1:
        return False
    packed, output = module.qkv, module.proj
    arguments = list(inspect.signature(module.forward).parameters)[1:]
    return (
        packed.out_features == 3 * output.in_features
        and output.in_features % number == 0
        and set(arguments) <= _ARGUMENTS
    )


Projections = tuple[nn.Linear, nn.Linear, nn.Linear]


def _parts(module: Any, dropout: float) -> tuple[Projections, HeadProduct]:
    """Return the layers of queries, keys and values of a packed layer `qkv`, and the product."""
    packed, dim = module.qkv, module.proj.in_features // module.num_heads
    biases: Any = [None] * 3 if packed.bias is None else packed.bias.detach().chunk(3)
    query, key, value = (
        linear_like(weight, bias, packed.weight)
        for weight, bias in zip(packed.weight.detach().chunk(3), biases, strict=True)
    )
    scale = float(getattr(module, "scale", dim**-0.5))
    return (query, key, value), HeadProduct(module.num_heads, dim, dim, scale, dropout)


def _open_packed(module: Any) -> OpenAttention:
    dropout = getattr(getattr(module, "attn_drop", None), "p", 0.0)
    norms = (getattr(module, "q_norm", None) or nn.Identity(), getattr(module, "k_norm", None) or nn.Identity())
    return OpenSelfAttention(
        *_parts(module, float(dropout)),
        norms,
        module.proj,
        getattr(module, "proj_drop", None) or nn.Identity(),
    )


@torch.no_grad()
def _is_plain(module: Any) -> bool:
    """Return whether a module with packed projections is attention and nothing else, by trying."""
    generator = torch.Generator().manual_seed(0)
    try:
        trial = copied(module).cpu().double().eval()
    except (RuntimeError, NotImplementedError, TypeError):  # It cannot be copied by itself, or holds no numbers.
        return False
    for parameter in trial.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) / 4)
    trial.qkv.weight.mul_(4 * module.qkv.in_features**-0.5)
    tokens = torch.randn(*_PROBE, module.qkv.in_features, generator=generator, dtype=torch.float64)
    options: list[dict[str, Any]] = [{}]
    arguments = inspect.signature(module.forward).parameters
    if "attn_mask" in arguments:
        options.append({"attn_mask": torch.randn(_PROBE[1], _PROBE[1], generator=generator, dtype=torch.float64)})
    if "is_causal" in arguments:
        options.append({"is_causal": True})
    try:
        opened = _open_packed(trial).eval()
        return all(_close(trial(tokens, **given), opened(tokens, **given)) for given in options)
    except Exception:  # Whatever is raised, it is not the attention that it looks like.
        return False


_is_plain_attention = KnownForms(_is_plain)


def _close(first: Any, second: Tensor) -> bool:
    return isinstance(first, Tensor) and first.shape == second.shape and bool(torch.allclose(first, second))
