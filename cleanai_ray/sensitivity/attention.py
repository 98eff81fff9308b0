"""The reading of query dimensions: the product with the keys is what a layer with weights is for other channels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from cleanai_ray.graph.group import ChannelGroup, Member
from cleanai_ray.nn.attention import OpenAttention
from cleanai_ray.nn.consumers import read_weight, write_weight
from cleanai_ray.repair.attention import balancing, blocks_of, second_moment, square_root
from cleanai_ray.repair.moments import ConsumerMoments
from cleanai_ray.sensitivity.elimination import Reading

_TINY = 1e-300


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
    queries = blocks_of(second_moment(moments[query]), num_heads)
    dimensions, heads = torch.arange(group.num_channels), torch.arange(num_heads)
    return {
        query: Reading(
            weight=torch.block_diag(*keys).unsqueeze(2),
            covariance=torch.block_diag(*queries),
            units=dimensions[:, None] + group.num_channels * heads,
        )
    }


def balanced_errors(reading: Reading) -> list[float]:
    """Return the relative squared error of the products when 1, 2, ... dimensions of every head are gone.

    Repair makes the dimensions that are left the best ones of their number, whichever they were (see `balancing`). So
    with r dimensions, the squares of the singular values of S_q^1/2 S_k^1/2 behind the first r are lost, in every head.
    """
    energies = sum(
        torch.linalg.svdvals(square_root(queries) @ square_root(keys)) ** 2 for queries, keys in _heads(reading)
    )
    assert isinstance(energies, Tensor)
    lost = energies.flip(0).cumsum(0)[:-1] / energies.sum().clamp_min(_TINY)
    return [float(error) for error in lost]


@torch.no_grad()
def fold_queries(model: nn.Module, queries: str, reading: Reading, removed: Tensor) -> None:
    """Make attention ignore query and key dimensions, after the others have become the best ones of their number.

    Args:
        model: The model, which is changed.
        queries: Name of the place where the queries pass by.
        reading: The reading of the queries.
        removed: Their removed channels.
    """
    attention = model.get_submodule(attention_of(queries))
    assert isinstance(attention, OpenAttention)
    stays = torch.ones(len(reading.covariance), dtype=torch.bool)
    stays[removed] = False
    parts: tuple[list[Tensor], list[Tensor]] = ([], [])
    for moments, places in zip(_heads(reading), stays.chunk(reading.units.shape[1]), strict=True):
        for rows, found in zip(balancing(*moments), parts, strict=True):
            found.append(torch.zeros_like(rows).index_copy(0, places.nonzero().flatten(), rows[: int(places.sum())]))
    _transform(attention.q_proj, torch.block_diag(*parts[0]))
    _transform(attention.k_proj, torch.block_diag(*parts[1]))


def attention_of(place: str) -> str:
    """Return the name of the attention module in which queries, keys or values pass by."""
    return place.rpartition(".")[0]


def _heads(reading: Reading) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the second moment of the queries and the covariance of the keys of every head."""
    number, weight = reading.units.shape[1], reading.weight.squeeze(2)
    yield from zip(blocks_of(reading.covariance, number), blocks_of(weight.T @ weight, number), strict=True)


def _transform(layer: nn.Linear, transform: Tensor) -> None:
    write_weight(layer, torch.einsum("ab,bcp->acp", transform, read_weight(layer)))
    if layer.bias is not None:
        layer.bias.copy_(transform @ layer.bias.double().cpu())
