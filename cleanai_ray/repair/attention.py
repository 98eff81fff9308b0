"""Compensation of removed query and key dimensions: those that stay become the best ones for their number."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from cleanai_ray.nn.attention import OpenAttention
from cleanai_ray.nn.view import shared_copy
from cleanai_ray.repair.moments import ConsumerMoments, LayerMoments
from cleanai_ray.repair.pair import Kept, ModelPair

_LEAST = 1e-7
"""Singular values below this share of the largest are rounding errors."""


def narrowed_queries(dense: nn.Module, kept_inputs: Kept) -> list[str]:
    """Return where the queries and keys of attention that lost some of their dimensions pass by in the dense model."""
    return [f"{name}{part}" for name, _, _ in _narrowed(dense, kept_inputs) for part in ("query", "key")]


def balance_queries(models: ModelPair, moments: ConsumerMoments) -> ModelPair:
    """Return the pair in which query and key dimensions that stay are the best ones for their number, in every head.

    The dense model of the result is a copy that computes the same with other queries and keys (see `balancing`): the
    dimensions that the pruned model keeps come first. So whatever compensates its layers afterwards starts at the best
    approximation of the products of queries and keys. The pruned model is changed.

    Args:
        models: The dense model, and its pruned copy with the dense model's weights.
        moments: Moments at `narrowed_queries`; attention without moments stays as it is.
    """
    dense = shared_copy(models.dense)
    for name, module, kept in _narrowed(dense, models.kept_inputs):
        places = [f"{name}{part}" for part in ("query", "key")]
        if any(place not in moments for place in places):
            continue
        transforms = _transforms(module, kept, *(moments[place] for place in places))
        for layer, transform in zip(("q_proj", "k_proj"), transforms, strict=True):
            source = module.get_submodule(layer)
            assert isinstance(source, nn.Linear)
            _multiply(source, transform)
            _copy_kept(source, models, f"{name}{layer}")
    return replace(models, dense=dense)


def balancing(queries: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
    """Return A and B, [d, d], with A^T B = I, so that q' = A q and k' = B k have the same products, best first.

    The first r rows of A and B give the best products of r dimensions: of all matrices M of rank r, M = A_r^T B_r has
    the least E (q^T k - q^T M k)^2 = |S_q^1/2 (I - M) S_k^1/2|^2, for queries and keys drawn independently. With
    S_q^1/2 S_k^1/2 = U s V^T, by the theorem of Eckart and Young (1936), M = S_q^-1/2 U_r s_r V_r^T S_k^-1/2; that is
    A = s^-1/2 V^T S_k^1/2 and B = s^-1/2 U^T S_q^1/2, the balancing transformation of Moore (1981, IEEE Transactions on
    Automatic Control 26), in which both second moments become s. Directions that no query or no key has give rows of 0.

    Args:
        queries: Second moment S_q of the queries of a head, [d, d].
        keys: Covariance S_k of its keys, [d, d]. Their mean changes no attention weight.
    """
    root_q, root_k = square_root(queries), square_root(keys)
    left, values, right = torch.linalg.svd(root_q @ root_k)
    is_real = values > _LEAST * values[0]
    scale = torch.where(is_real, values, torch.ones_like(values)).rsqrt() * is_real
    return scale[:, None] * (right @ root_k), scale[:, None] * (left.T @ root_q)


def square_root(matrix: Tensor) -> Tensor:
    """Return the square root of a symmetric matrix without its negative part, which is rounding errors."""
    values, vectors = torch.linalg.eigh(matrix)
    return (vectors * values.clamp_min(0).sqrt()) @ vectors.T


def second_moment(moments: LayerMoments) -> Tensor:
    """Return the mean of x x^T, [C, C]."""
    return moments.covariance + torch.outer(moments.mean, moments.mean)


def blocks_of(matrix: Tensor, number: int) -> list[Tensor]:
    """Return the blocks of a matrix on its diagonal."""
    size = len(matrix) // number
    return [matrix[start : start + size, start : start + size] for start in range(0, len(matrix), size)]


def _narrowed(model: nn.Module, kept_inputs: Kept) -> Iterator[tuple[str, OpenAttention, np.ndarray]]:
    """Yield attention that keeps some query dimensions of a head and not all, with its prefix and what it keeps."""
    for name, module in model.named_modules():
        if isinstance(module, OpenAttention) and not module.normalises_queries:
            prefix = f"{name}." if name else ""
            kept = kept_inputs.get(f"{prefix}query")
            if kept is not None and 0 < len(kept) < len(np.unique(kept // _dim(module))) * _dim(module):
                yield prefix, module, kept


def _dim(module: OpenAttention) -> int:
    return module.heads.query_dim


def _transforms(
    module: OpenAttention, kept: np.ndarray, queries: LayerMoments, keys: LayerMoments
) -> tuple[Tensor, Tensor]:
    """Return what to multiply the layers of queries and keys with, a head's best dimensions where it keeps any."""
    number, dim = module.num_heads, _dim(module)
    seconds, covariances = blocks_of(second_moment(queries), number), blocks_of(keys.covariance, number)
    blocks: tuple[list[Tensor], list[Tensor]] = ([], [])
    for head, moments in enumerate(zip(seconds, covariances, strict=True)):
        own = kept[kept // dim == head] % dim
        places = torch.as_tensor(np.concatenate([own, np.setdiff1d(np.arange(dim), own)]))
        for rows, found in zip(balancing(*moments), blocks, strict=True):
            found.append(torch.zeros_like(rows).index_copy(0, places, rows))
    return torch.block_diag(*blocks[0]), torch.block_diag(*blocks[1])


def _multiply(layer: nn.Linear, transform: Tensor) -> None:
    """Give a layer other weights, in new parameters."""
    for field in ("weight", "bias"):
        value = getattr(layer, field)
        if value is not None:
            new = (transform @ value.detach().double().cpu()).to(value)
            setattr(layer, field, nn.Parameter(new, requires_grad=value.requires_grad))


@torch.no_grad()
def _copy_kept(source: nn.Linear, models: ModelPair, name: str) -> None:
    """Give the pruned model's layer the kept rows and columns of the dense model's."""
    target = models.pruned.get_submodule(name)
    assert isinstance(target, nn.Linear)
    rows, columns = (_indices(kept, name) for kept in (models.kept_outputs, models.kept_inputs))
    weight = source.weight if rows is None else source.weight[rows]
    target.weight.copy_(weight if columns is None else weight[:, columns])
    if source.bias is not None:
        target.bias.copy_(source.bias if rows is None else source.bias[rows])


def _indices(kept: Mapping[str, np.ndarray], name: str) -> Tensor | None:
    return torch.as_tensor(kept[name]) if name in kept else None
