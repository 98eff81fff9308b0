"""The weights of a pruned model of transformers as its own classes name and hold them.

1. Layers that were opened are closed: a Linear layer that stands for `Conv1D` is turned, and queries, keys and values
   of GPT-2 become one weight again.
2. Layers of which nothing is left but the means of their branches are dropped, and those behind them are numbered
   anew. What they added is a constant: it goes into the bias of the layer before, or into the token embeddings.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from cleanai_ray.errors import ArtifactError
from cleanai_ray.nn.open_layers import PackedProjections, names_of_opened
from cleanai_ray.nn.shortcuts import BranchMean, Shortcut, Skipped

_REMOVED = (BranchMean, Shortcut, Skipped)


@dataclass(eq=False)
class NativeForm:
    """What a model's own classes must hold to compute the same.

    Attributes:
        state: Every tensor by its name.
        removed: Numbers of the layers that are gone, in the dense model, ascending.
        num_heads: Heads of packed attention, which no shape tells; None: there is none, or they differ.
    """

    state: dict[str, Tensor]
    removed: tuple[int, ...] = ()
    num_heads: int | None = None
    _layers: str = field(default="", repr=False)


def native_form(model: Any) -> NativeForm:
    """Return the weights of a pruned model in the form of its own classes.

    Args:
        model: A model of transformers, pruned or not; it is left as it is.

    Raises:
        ArtifactError: When a part of a layer was removed, or the constant that removed layers leave has no place.
    """
    form = NativeForm(state={name: value.detach() for name, value in model.state_dict().items()})
    _close_layers(model, form)
    _drop_layers(model, form)
    left = next((name for name, part in model.named_modules() if isinstance(part, _REMOVED) and _stays(name, form)), "")
    if left:
        raise ArtifactError(
            f"block '{left}' was removed, and the rest of its layer was not: a configuration of transformers counts "
            "whole layers; remove all blocks of a layer or none, or export it as torch_export"
        )
    return form


def _close_layers(model: nn.Module, form: NativeForm) -> None:
    heads = set()
    for name in names_of_opened(model):
        layer = model.get_submodule(name)
        if isinstance(layer, PackedProjections):
            parts = [layer.q_proj, layer.k_proj, layer.v_proj]
            form.state = {key: value for key, value in form.state.items() if not key.startswith(f"{name}.")}
            form.state[f"{name}.weight"] = torch.cat([part.weight.detach() for part in parts]).t().contiguous()
            form.state[f"{name}.bias"] = torch.cat([part.bias.detach() for part in parts])
            heads.add(getattr(model.get_submodule(name.rpartition(".")[0]), "num_heads", None))
        elif isinstance(layer, nn.Linear):
            form.state[f"{name}.weight"] = layer.weight.detach().t().contiguous()
    form.num_heads = heads.pop() if len(heads) == 1 else None


def _drop_layers(model: Any, form: NativeForm) -> None:
    """Drop the layers of a list that are wholly gone, and put the constants that they leave elsewhere."""
    for name, layers in _lists_of_layers(model):
        gone = [number for number, layer in enumerate(layers) if _is_gone(layer)]
        if not gone:
            continue
        for number in gone:
            before = [each for each in range(number) if each not in gone]
            _put_constant(model, form, (f"{name}.{number}", layers[number]), f"{name}.{before[-1]}" if before else None)
        kept = [number for number in range(len(layers)) if number not in gone]
        numbers = {f"{name}.{old}": f"{name}.{new}" for new, old in enumerate(kept)}
        form.state = {
            _renamed(key, numbers): value
            for key, value in form.state.items()
            if not any(key.startswith(f"{name}.{number}.") for number in gone)
        }
        form.removed, form._layers = tuple(gone), name
        return


def _lists_of_layers(model: Any) -> Iterator[tuple[str, nn.ModuleList]]:
    number = getattr(model.config, "num_hidden_layers", None)
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == number:
            yield name, module


def _is_gone(layer: nn.Module) -> bool:
    """Return whether nothing is left of a layer but the means of its branches."""
    left = [part for part in layer.modules() if isinstance(part, _REMOVED)]
    means = {id(part.mean) for part in left if isinstance(part, (BranchMean, Shortcut))}
    return bool(left) and all(id(parameter) in means for parameter in layer.parameters())


def _stays(name: str, form: NativeForm) -> bool:
    return not any(f"{name}.".startswith(f"{form._layers}.{number}.") for number in form.removed)


def _renamed(key: str, numbers: dict[str, str]) -> str:
    found = next((old for old in numbers if key.startswith(f"{old}.")), None)
    return key if found is None else numbers[found] + key[len(found) :]


def _put_constant(model: Any, form: NativeForm, gone: tuple[str, nn.Module], before: str | None) -> None:
    """Add what a removed layer adds to every token to the bias of the layer before, or to the token embeddings."""
    means = [part.mean for part in gone[1].modules() if isinstance(part, (BranchMean, Shortcut))]
    constant = sum((mean.detach().flatten() for mean in means if mean is not None), torch.zeros(()))
    if not torch.count_nonzero(constant):
        return
    last = None if before is None else _last_linear(model, before)
    if last is not None and last[1] == len(constant):
        name = f"{last[0]}.bias"
        form.state[name] = form.state[name] + constant if name in form.state else constant
        return
    embeddings, head = model.get_input_embeddings(), model.get_output_embeddings()
    names = [name for name, module in model.named_modules() if module is embeddings]
    is_tied = head is not None and getattr(head, "weight", None) is getattr(embeddings, "weight", None)
    if before is not None or is_tied or not isinstance(embeddings, nn.Embedding) or not names:
        raise ArtifactError(
            f"layer '{gone[0]}' was removed, and what it gave on average has no place in the layer before it"
            + (" (the token embeddings are also the weights of the output layer)" if is_tied and not before else "")
            + "; remove another layer, or export it as torch_export"
        )
    form.state[f"{names[0]}.weight"] = form.state[f"{names[0]}.weight"] + constant


def _last_linear(model: nn.Module, layer: str) -> tuple[str, int] | None:
    found = [
        (f"{layer}.{name}", module.out_features)
        for name, module in model.get_submodule(layer).named_modules()
        if isinstance(module, nn.Linear)
    ]
    return found[-1] if found else None
