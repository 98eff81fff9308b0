"""The reading of query dimensions: the product with the keys is what a layer with weights is for other channels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from cleanai_ray.graph.graph import ChannelGroup, Member
from cleanai_ray.nn.attention import OpenAttention
from cleanai_ray.nn.consumers import read_weight, write_weight
from cleanai_ray.repair.attention import blocks_of, square_root
from cleanai_ray.repair.compensation import solve_ridge
from cleanai_ray.repair.moments import ConsumerMoments
from cleanai_ray.sensitivity.elimination import Reading


def query_reading(
    group: ChannelGroup, members: Sequence[Member], moments: ConsumerMoments, num_heads: int
) -> dict[str, Reading]:
    """Return the reading of a group of query and key dimensions, under the name of the place where queries pass by.

    A head's product q^T k is a linear map of q. Over pairs of a query and a key that are drawn independently, its mean
    square is tr(S_q S_k), which is that of W q with W^T W = S_k. S_q is the second moment of the queries, and S_k the
    covariance of the keys: what all keys have in common changes no attention weight.

    Args:
        group: The group; its channels are the dimensions of one head.
        members: Its members where queries and keys pass by.
        moments: Moments of both.
        num_heads: Heads that queries and keys consist of.
    """
    query, key = (member.layer for member in members)
    if query not in moments or key not in moments:
        return {}
    keys = [square_root(block) for block in blocks_of(moments[key].covariance, num_heads)]
    first = moments[query]
    queries = blocks_of(first.second / first.count, num_heads)
    dimensions, heads = torch.arange(group.num_channels), torch.arange(num_heads)
    return {
        query: Reading(
            weight=torch.block_diag(*keys).unsqueeze(2),
            covariance=torch.block_diag(*queries),
            units=dimensions[:, None] + group.num_channels * heads,
        )
    }


@torch.no_grad()
def fold_queries(model: nn.Module, queries: str, reading: Reading, removed: Tensor, ridge: float) -> None:
    """Make attention ignore query dimensions R: the keys of the others, K, take over k_K += A^T k_R, where q_R = A q_K.

    Args:
        model: The model, which is changed.
        queries: Name of the place where the queries pass by.
        reading: The reading of the queries.
        removed: Their removed channels.
        ridge: Regularisation, as a share of the mean second moment of the kept queries.
    """
    attention = model.get_submodule(queries.rpartition(".")[0])
    assert isinstance(attention, OpenAttention)
    stays = torch.ones(len(reading.covariance), dtype=torch.bool)
    stays[removed] = False
    mapping = solve_ridge(reading.covariance[removed][:, stays], reading.covariance[stays][:, stays], ridge)
    transform = torch.eye(len(stays), dtype=mapping.dtype)
    transform[stays.nonzero(), removed] = mapping.T
    _transform(attention.k_proj, transform)
    _transform(attention.q_proj, torch.diag(stays.to(mapping.dtype)))


def _transform(layer: nn.Linear, transform: Tensor) -> None:
    write_weight(layer, torch.einsum("ab,bcp->acp", transform, read_weight(layer)))
    if layer.bias is not None:
        layer.bias.copy_(transform @ layer.bias.double().cpu())
