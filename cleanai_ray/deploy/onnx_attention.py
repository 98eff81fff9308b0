"""Attention in a captured program, made such that it can be translated to ONNX."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_DIMENSIONS = 4
"""Dimensions of the queries that the translation knows: samples, heads, tokens, values."""


def translatable(program: torch.export.ExportedProgram) -> torch.export.ExportedProgram:
    """Return a program whose attention can be translated; the program given is changed.

    - Attention is translated as operations whose result may lie otherwise in memory than what was captured, and a view
      of it is then impossible: it is copied, and views become reshapes. ONNX has no strides: there, a copy is nothing,
      and views and reshapes are the same.
    - Queries with more dimensions than samples, heads, tokens and values, as those of attention within windows, are
      multiplied as they are.
    """
    attention, graph = torch.ops.aten.scaled_dot_product_attention.default, program.graph
    found = [node for node in graph.nodes if node.target is attention]
    if any(node.args[0].meta["val"].dim() != _DIMENSIONS for node in found):
        return program.run_decompositions({attention: _attend})
    for node in graph.nodes:
        if node.target is torch.ops.aten.view.default:
            node.target = torch.ops.aten.reshape.default
    for node in found:
        with graph.inserting_after(node):
            copy = graph.call_function(torch.ops.aten.clone.default, (node,))
        copy.kwargs = {"memory_format": torch.contiguous_format}
        copy.meta = dict(node.meta)
        node.replace_all_uses_with(copy, delete_user_cb=lambda user, copy=copy: user is not copy)
    program.graph_module.recompile()
    return program


def _attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    **options: bool,
) -> Any:
    """Return softmax(scale query key^T + mask) value, as torch documents it; in evaluation mode nothing is dropped."""
    if options.get("enable_gqa"):
        raise NotImplementedError("heads that share keys, with more dimensions than samples, heads, tokens and values")
    weights = (query * (query.shape[-1] ** -0.5 if scale is None else scale)) @ key.transpose(-2, -1)
    if is_causal:
        attn_mask = torch.ones(weights.shape[-2:], dtype=torch.bool, device=query.device).tril()
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        weights = weights.masked_fill(~attn_mask, float("-inf"))
    elif attn_mask is not None:
        weights = weights + attn_mask
    return weights.softmax(-1) @ value
