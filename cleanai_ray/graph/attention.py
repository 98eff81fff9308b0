"""Attention that can be narrowed: four Linear layers around a number of heads."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import nn

from cleanai_ray.nn.attention import OpenAttention
from cleanai_ray.nn.open_layers import PackedProjections

_INPUTS = ("q_proj", "k_proj", "v_proj")
_OUTPUTS = ("o_proj", "out_proj")
_COUNTS = ("num_heads", "num_attention_heads", "n_heads", "head_dim")


@dataclass(frozen=True, eq=False)
class Attention:
    """The layers of one attention module.

    Attributes:
        name: Module name.
        inputs: The layers that make queries, keys and values.
        output: The layer that reads all heads.
        head_dim: Value channels per head. All four layers hold one head after another.
        opened: The module, if dimensions inside its heads can be removed as well.
    """

    name: str
    inputs: tuple[nn.Linear, nn.Linear, nn.Linear]
    output: nn.Linear
    head_dim: int
    opened: OpenAttention | None = None

    @property
    def num_heads(self) -> int:
        """The present number of heads."""
        return self.opened.num_heads if self.opened else self.inputs[2].out_features // self.head_dim


def find_attention(model: nn.Module) -> Iterator[Attention]:
    """Yield the attention modules whose heads can be pruned.

    Such a module is an `OpenAttention`, or it has Linear layers `q_proj`, `k_proj`, `v_proj` of equal width, `o_proj`
    or `out_proj`, and an integer `head_dim`, and its forward pass derives the number of heads from the layers' width
    (`view(..., -1, head_dim)`), as models in `transformers` do. GPT-2 has these layers within `c_attn`, and `c_proj`.
    Attention in which several heads share keys and values (grouped queries) is left out, since those have another
    width.
    """
    for name, module in model.named_modules():
        if isinstance(module, OpenAttention):
            layers = (module.q_proj, module.k_proj, module.v_proj)
            yield Attention(name, layers, module.output, module.heads.value_dim, module)
            continue
        packed = getattr(module, "c_attn", None)
        holder, outputs = (packed, ("c_proj",)) if isinstance(packed, PackedProjections) else (module, _OUTPUTS)
        readers = [layer for key in _INPUTS if isinstance(layer := getattr(holder, key, None), nn.Linear)]
        output = next((getattr(module, key) for key in outputs if hasattr(module, key)), None)
        size = getattr(module, "head_dim", None)
        if len(readers) < len(_INPUTS) or not isinstance(output, nn.Linear) or not isinstance(size, int):
            continue
        widths = {*(layer.out_features for layer in readers), output.in_features}
        if len(widths) == 1 and readers[0].out_features % size == 0:
            yield Attention(name, (readers[0], readers[1], readers[2]), output, size)


def notes_on_attention(model: nn.Module, found: Sequence[Attention]) -> tuple[str, ...]:
    """Return a sentence about the attention modules whose heads cannot be pruned; none if there are no such modules.

    Args:
        model: The model, with attention in separate layers where that was possible.
        found: Attention whose heads can be pruned.
    """
    known = [each.name for each in found]
    left = [
        (name, type(module).__name__)
        for name, module in model.named_modules()
        if "attention" in type(module).__name__.lower()
        and any(hasattr(module, count) for count in _COUNTS)
        and any(isinstance(child, nn.Linear) for child in module.children())
        and not any(_is_within(name, other) or _is_within(other, name) for other in known)
    ]
    if not left:
        return ()
    name, kind = left[0]
    return (
        f"{len(left)} attention module{'' if len(left) == 1 else 's'} ('{name}', {kind}) "
        f"keep{'s' if len(left) == 1 else ''} all heads and their dimensions: they are of no kind that can be narrowed",
    )


def _is_within(name: str, other: str) -> bool:
    return not other or f"{name}.".startswith(f"{other}.")
