"""Attention whose heads can be pruned: four Linear layers of known names around a number of heads."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

_INPUTS = ("q_proj", "k_proj", "v_proj")
_OUTPUTS = ("o_proj", "out_proj")


@dataclass(frozen=True, eq=False)
class Attention:
    """The layers of one attention module.

    Attributes:
        inputs: The layers that make queries, keys and values.
        output: The layer that reads all heads.
        head_dim: Channels per head. All four layers hold one head after another.
    """

    inputs: tuple[nn.Linear, ...]
    output: nn.Linear
    head_dim: int


def find_attention(model: nn.Module) -> Iterator[Attention]:
    """Yield the attention modules whose heads can be pruned.

    Such a module has Linear layers `q_proj`, `k_proj`, `v_proj` of equal width, `o_proj` or `out_proj`, and an integer
    `head_dim`, and its forward pass derives the number of heads from the layers' width (`view(..., -1, head_dim)`), as
    decoders in `transformers` do. Attention in which several heads share keys and values (grouped queries) is left out,
    since those have another width.
    """
    for module in model.modules():
        inputs = [getattr(module, name, None) for name in _INPUTS]
        output = next((getattr(module, name) for name in _OUTPUTS if hasattr(module, name)), None)
        size = getattr(module, "head_dim", None)
        layers = [layer for layer in (*inputs, output) if isinstance(layer, nn.Linear)]
        if len(layers) < 4 or not isinstance(size, int):
            continue
        *readers, writer = layers
        widths = {*(layer.out_features for layer in readers), writer.in_features}
        if len(widths) == 1 and readers[0].out_features % size == 0:
            yield Attention(tuple(readers), writer, size)
