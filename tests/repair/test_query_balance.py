"""Removed query and key dimensions: the best products of a rank, by hand, by brute force, and in whole models."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from packed_attention import packed_vit
from pruned_nets import Case, cut, images_for
from small_nets import tiny_vit
from torch import Tensor, nn

from cleanai_ray.nn.open_attention import open_attention
from cleanai_ray.repair import RepairOptions, repair
from cleanai_ray.repair.attention import balance_queries, balancing, narrowed_queries
from cleanai_ray.repair.moments import collect_moments
from cleanai_ray.repair.pair import ModelPair

PREFIX = "encoder.layers.encoder_layer_0.self_attention"


def moment(size: int, rank: int, generator: torch.Generator) -> Tensor:
    root = torch.randn(size, rank, generator=generator, dtype=torch.float64)
    return root @ root.T


def loss(queries: Tensor, keys: Tensor, matrix: Tensor) -> float:
    """E (q^T k - q^T M k)^2 for independent queries and keys: tr((I - M)^T S_q (I - M) S_k)."""
    rest = torch.eye(len(matrix), dtype=matrix.dtype) - matrix
    return float((rest.T @ queries @ rest @ keys).trace())


@given(st.integers(1, 6), st.integers(0, 2**31), st.data())
@settings(max_examples=50, deadline=None)
def test_all_dimensions_together_change_nothing(size: int, seed: int, data: st.DataObject) -> None:
    generator = torch.Generator().manual_seed(seed)
    ranks = [data.draw(st.integers(1, size)) for _ in range(2)]
    queries, keys = (moment(size, rank, generator) for rank in ranks)
    a, b = balancing(queries, keys)
    scale = float((queries @ keys).trace())
    assert loss(queries, keys, a.T @ b) <= 1e-6 * scale + 1e-12


def test_the_first_dimensions_are_better_than_any_others() -> None:
    """Against the best of gradient descent over all pairs of rank two, from many starts."""
    generator = torch.Generator().manual_seed(1)
    queries, keys = moment(4, 4, generator), moment(4, 4, generator)
    a, b = balancing(queries, keys)
    best = loss(queries, keys, a[:2].T @ b[:2])
    found = []
    for _ in range(10):
        pair = [torch.randn(2, 4, generator=generator, dtype=torch.float64, requires_grad=True) for _ in range(2)]
        optimiser = torch.optim.LBFGS(pair, max_iter=500, line_search_fn="strong_wolfe", tolerance_grad=1e-10)

        def closure(pair: list[Tensor] = pair, optimiser: torch.optim.LBFGS = optimiser) -> Tensor:
            optimiser.zero_grad()
            rest = torch.eye(4, dtype=torch.float64) - pair[0].T @ pair[1]
            value = (rest.T @ queries @ rest @ keys).trace()
            value.backward()
            return value

        optimiser.step(closure)
        found.append(float(closure().detach()))
    assert min(found) == pytest.approx(best, rel=1e-4)
    assert all(value >= best * (1 - 1e-9) for value in found)


def test_two_dimensions_by_hand() -> None:
    """With S_q = diag(4, 1) and S_k = diag(1, 9) the products are 2 and 3: the second dimension comes first."""
    a, b = balancing(torch.diag(torch.tensor([4.0, 1.0])), torch.diag(torch.tensor([1.0, 9.0])))
    first = a[:1].T @ b[:1]
    torch.testing.assert_close(first, torch.tensor([[0.0, 0.0], [0.0, 1.0]]))
    torch.testing.assert_close(a.T @ b, torch.eye(2))


@torch.no_grad()
def plant_rank(model: nn.Module, rank: int) -> None:
    """Let the queries and keys of every head be combinations of few, so that none can go, and fewer would do."""
    generator = torch.Generator().manual_seed(2)
    for module in open_attention(model).modules():
        if hasattr(module, "q_proj"):
            weights = [layer.weight for layer in (module.q_proj, module.k_proj)]
            biases = [layer.bias for layer in (module.q_proj, module.k_proj)]
            for head in range(4):
                rows = slice(8 * head, 8 * head + 8)
                mix = torch.randn(8, rank, generator=generator, dtype=torch.float64)
                for weight, bias in zip(weights, biases, strict=True):
                    weight[rows] = (mix @ weight[rows][:rank].double()).to(weight)
                    bias[rows] = (mix @ torch.randn(rank, generator=generator, dtype=torch.float64)).to(bias)


REMOVED = {
    "dimensions": {f"{PREFIX}.query": [0, 2, 5]},
    "heads, too": {f"{PREFIX}.query": [0, 2, 5], f"{PREFIX}.heads": list(range(8, 16))},
    "values, too": {f"{PREFIX}.query": [1, 2, 3], f"{PREFIX}.value": [4]},
}


def pair_of(case: Case) -> tuple[ModelPair, Tensor]:
    images = images_for("vit", 40, dtype=torch.float64)
    pair = case.pair(copy.deepcopy(case.result.model))
    moments = collect_moments(pair.dense, [images], layers=narrowed_queries(pair.dense, pair.kept_inputs))
    return balance_queries(pair, moments), images


@pytest.mark.parametrize("removed", REMOVED)
def test_products_of_a_low_rank_are_recovered(removed: str) -> None:
    """Five dimensions are left, and five are all there is: attention is what it was before query dimensions went."""
    model = tiny_vit().double()
    plant_rank(model, 5)
    case = cut(model, REMOVED[removed])
    others = {name: channels for name, channels in REMOVED[removed].items() if not name.endswith("query")}
    pair, images = pair_of(case)
    with torch.no_grad():
        expected = (cut(model, others).result.model if others else model)(images)
        assert not torch.allclose(case.result.model(images), expected, atol=1e-3)
        torch.testing.assert_close(pair.pruned(images), expected, rtol=1e-6, atol=1e-7)


def test_the_dense_model_of_the_pair_computes_the_same_and_the_given_one_is_left_alone() -> None:
    model = tiny_vit().double()
    before = copy.deepcopy(model.state_dict())
    pair, images = pair_of(cut(model, REMOVED["heads, too"]))
    with torch.no_grad():
        torch.testing.assert_close(pair.dense(images), model(images))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    kept = torch.as_tensor(pair.kept_outputs[f"{PREFIX}.q_proj"])
    dense, pruned = (network.get_submodule(f"{PREFIX}.q_proj") for network in (pair.dense, pair.pruned))
    assert torch.equal(dense.weight[kept], pruned.weight)
    assert torch.equal(dense.bias[kept], pruned.bias)


def test_whole_heads_and_normalised_queries_are_not_balanced() -> None:
    heads = cut(tiny_vit(), {f"{PREFIX}.heads": list(range(8))})
    assert narrowed_queries(heads.dense, heads.result.kept_inputs) == []
    model = open_attention(packed_vit(qk_norm=True))
    assert narrowed_queries(model, {"blocks.0.attn.query": np.arange(31)}) == []
    assert narrowed_queries(open_attention(packed_vit()), {"blocks.0.attn.query": np.arange(31)}) == [
        "blocks.0.attn.query",
        "blocks.0.attn.key",
    ]


@pytest.mark.parametrize("compensation", ["closed_form", "sequential"])
def test_repair_recovers_a_low_rank_and_refits_the_output_projection(compensation: str) -> None:
    """A value dimension that is a multiple of another in every head costs nothing: the output layer takes it over."""
    model = tiny_vit()
    plant_rank(model, 5)
    attention = model.encoder.layers[0].self_attention
    with torch.no_grad():
        for head in range(4):
            values = slice(64 + 8 * head, 64 + 8 * head + 8)
            attention.in_proj_weight[values][3] = 2.0 * attention.in_proj_weight[values][6]
            attention.in_proj_bias[values][3] = 2.0 * attention.in_proj_bias[values][6]
    case, images = cut(model, {f"{PREFIX}.query": [0, 2, 5], f"{PREFIX}.value": [3]}), images_for("vit", 60)
    options = RepairOptions(compensation=compensation, batch_norm="none", ridge=1e-9)
    outcome = repair(case.dense, case.result, [images], options)
    with torch.no_grad():
        expected, pruned, found = (network(images) for network in (model, case.result.model, outcome.model))
    assert outcome.skipped == ()
    assert float((pruned - expected).abs().max()) > 1e-2
    torch.testing.assert_close(found, expected, rtol=1e-2, atol=1e-3)
