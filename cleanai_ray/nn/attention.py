"""Attention in separate layers, whose heads and whose dimensions inside heads can be removed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


class HeadChannels(nn.Module):
    """The place where the queries, keys or values of all heads pass by, one head after another; it changes nothing.

    Args:
        num_channels: Channels that pass, [..., num_channels].
    """

    def __init__(self, num_channels: int) -> None:
        super().__init__()
        self.num_channels = num_channels

    def forward(self, channels: Tensor) -> Tensor:
        """Return the channels as they are."""
        return channels

    def extra_repr(self) -> str:
        """Return the number of channels."""
        return str(self.num_channels)


class HeadProduct(nn.Module):
    """The product of queries, keys and values in each head; it has no weights.

    Args:
        num_heads: Number of heads.
        query_dim: Query (and key) dimensions of each head.
        value_dim: Value dimensions of each head.
        scale: Factor of the products of queries and keys. It stays that of the dense model when dimensions go.
        dropout: Share of attention weights that training drops.
    """

    def __init__(self, num_heads: int, query_dim: int, value_dim: int, scale: float, dropout: float = 0.0) -> None:
        super().__init__()
        self.num_heads, self.query_dim, self.value_dim = num_heads, query_dim, value_dim
        self.scale, self.dropout = scale, dropout

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None, is_causal: bool = False
    ) -> Tensor:
        """Return the mixed values of all heads, [N, T, num_heads x value_dim].

        Args:
            query: [N, T, num_heads x query_dim].
            key: [N, S, num_heads x query_dim].
            value: [N, S, num_heads x value_dim].
            mask: As scaled_dot_product_attention takes it, broadcast to [N, num_heads, T, S].
            is_causal: Whether positions see only those before them.
        """
        parts = (self.split(query), self.split(key), self.split(value))
        dropout = self.dropout if self.training else 0.0
        mixed = functional.scaled_dot_product_attention(
            *parts, attn_mask=mask, dropout_p=dropout, is_causal=is_causal, scale=self.scale
        )
        return mixed.transpose(1, 2).flatten(2)

    def split(self, channels: Tensor) -> Tensor:
        """Return channels [N, T, C] as heads [N, num_heads, T, C / num_heads]."""
        return channels.unflatten(2, (self.num_heads, channels.shape[2] // self.num_heads)).transpose(1, 2)

    def weights(self, query: Tensor, key: Tensor, mask: Tensor | None) -> Tensor:
        """Return the attention weights, [N, num_heads, T, S]."""
        products = self.scale * self.split(query) @ self.split(key).transpose(2, 3)
        if mask is not None:
            products = products.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else products + mask
        return products.softmax(dim=-1)

    def extra_repr(self) -> str:
        """Return the widths."""
        return f"num_heads={self.num_heads}, query_dim={self.query_dim}, value_dim={self.value_dim}"


class OpenAttention(nn.Module):
    """Attention with a Linear layer each for queries, keys and values.

    Attributes:
        q_proj: Linear layer of the queries of all heads, one head after another; `k_proj` and `v_proj` likewise.
        query: Where the queries pass by; `key` and `value` likewise.
        heads: The product.
    """

    batch_first = True
    output_name = "out_proj"
    """Attribute name of the layer that reads all heads, which is that of the attention it stands for."""

    def __init__(self, projections: tuple[nn.Linear, nn.Linear, nn.Linear], heads: HeadProduct) -> None:
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj = projections
        self.query, self.key, self.value = (HeadChannels(layer.out_features) for layer in projections)
        self.heads = heads

    @property
    def output(self) -> nn.Linear:
        """The layer that reads all heads."""
        layer = getattr(self, self.output_name)
        assert isinstance(layer, nn.Linear)
        return layer

    @property
    def num_heads(self) -> int:
        """The number of heads."""
        return self.heads.num_heads

    @property
    def normalises_queries(self) -> bool:
        """True if queries or keys are normalised in each head, so that no dimension can go by itself."""
        return False

    def drop_heads(self, heads: Sequence[int]) -> None:
        """Remove what else belongs to heads, by their present numbers; the layers are cut elsewhere."""

    def project(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries, keys and values of all heads."""
        return self.query(self.q_proj(query)), self.key(self.k_proj(key)), self.value(self.v_proj(value))


class OpenMultiheadAttention(OpenAttention):
    """Stands for an `nn.MultiheadAttention`: it is called in the same way, and computes the same.

    A mask of its own for each head, [N x num_heads, T, S], works as long as no head is removed.
    """

    # torch's transformer layers read these, and take the fused path only if there is a packed bias.
    in_proj_bias = None
    in_proj_weight = None
    _qkv_same_embed_dim = False

    def __init__(
        self,
        projections: tuple[nn.Linear, nn.Linear, nn.Linear],
        heads: HeadProduct,
        output: nn.Linear,
        batch_first: bool,
    ) -> None:
        super().__init__(projections, heads)
        self.out_proj = output
        self.batch_first = batch_first

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        **hints: bool,
    ) -> tuple[Tensor, Tensor | None]:
        """Return the output and, if needed, the attention weights, as `nn.MultiheadAttention.forward` does.

        `hints`, which is `is_causal`, says nothing that the mask does not say.
        """
        inputs = [query, key, value]
        is_batched = query.dim() == 3
        if not is_batched:
            inputs = [part.unsqueeze(0) for part in inputs]
        elif not self.batch_first:
            inputs = [part.transpose(0, 1) for part in inputs]
        q, k, v = self.project(*inputs)
        mask = self._mask(key_padding_mask, attn_mask, q)
        output = self.out_proj(self.heads(q, k, v, mask))
        weights = self.heads.weights(q, k, mask) if need_weights else None
        if weights is not None and average_attn_weights:
            weights = weights.mean(dim=1)
        if not is_batched:
            return output.squeeze(0), None if weights is None else weights.squeeze(0)
        return output if self.batch_first else output.transpose(0, 1), weights

    def _mask(self, padding: Tensor | None, mask: Tensor | None, query: Tensor) -> Tensor | None:
        """Return both masks as one that is added to the products; True means "not allowed" in those given."""
        parts = []
        for part in (padding, mask):
            if part is not None and part.dtype == torch.bool:
                part = torch.zeros_like(part, dtype=query.dtype).masked_fill_(part, -torch.inf)
            parts.append(part)
        padding, mask = parts
        if mask is not None and mask.dim() == 3:
            mask = mask.unflatten(0, (query.shape[0], self.num_heads))
        if padding is None:
            return mask
        padding = padding.reshape(query.shape[0], 1, 1, -1)
        return padding if mask is None else mask + padding


class OpenSelfAttention(OpenAttention):
    """Stands for self-attention with one packed layer `qkv` and an output layer `proj`, as timm writes it.

    Args:
        projections: The layers of queries, keys and values.
        heads: The product.
        norms: What queries and keys of a head pass through.
        proj: The layer that reads all heads.
        proj_drop: What its output passes through.
    """

    output_name = "proj"

    def __init__(
        self,
        projections: tuple[nn.Linear, nn.Linear, nn.Linear],
        heads: HeadProduct,
        norms: tuple[nn.Module, nn.Module],
        proj: nn.Linear,
        proj_drop: nn.Module,
    ) -> None:
        super().__init__(projections, heads)
        self.q_norm, self.k_norm = norms
        self.proj = proj
        self.proj_drop = proj_drop

    @property
    def normalises_queries(self) -> bool:
        """True if queries or keys are normalised in each head, so that no dimension can go by itself."""
        return not all(isinstance(norm, nn.Identity) for norm in (self.q_norm, self.k_norm))

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """Return the output for tokens [N, T, C]."""
        q, k, v = self.project(x, x, x)
        if self.normalises_queries:
            q, k = (self._normalised(part, norm) for part, norm in ((q, self.q_norm), (k, self.k_norm)))
        output: Tensor = self.proj_drop(self.proj(self.heads(q, k, v, attn_mask, is_causal)))
        return output

    def _normalised(self, channels: Tensor, norm: nn.Module) -> Tensor:
        normalised: Tensor = norm(channels.unflatten(2, (self.num_heads, -1)))
        return normalised.flatten(2)


def linear_like(weight: Tensor, bias: Tensor | None, like: Any) -> nn.Linear:
    """Return a Linear layer with a weight and a bias, which need gradients if those of another layer do."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    layer.weight = nn.Parameter(weight.detach(), requires_grad=like.requires_grad)
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach(), requires_grad=like.requires_grad)
    return layer
