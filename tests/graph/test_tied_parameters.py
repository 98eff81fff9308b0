"""Layers that share a parameter: it stays shared through every step, or keeps its width."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import cleanai_ray as cleanai
from cleanai_ray.errors import PruningError
from cleanai_ray.graph.graph import ChannelGraph
from cleanai_ray.nn.complexity import measure_complexity
from cleanai_ray.pruning.cost import CostModel

TOKENS = torch.randint(0, 20, (4, 5), generator=torch.Generator().manual_seed(0))
VECTORS = torch.randn(16, 6, generator=torch.Generator().manual_seed(0))


class Language(nn.Module):
    """Token embeddings that are the weight of the output layer, around a feed-forward block."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 16)
        self.up, self.down, self.norm = nn.Linear(16, 24), nn.Linear(24, 16), nn.LayerNorm(16)
        self.head = nn.Linear(16, 20, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        x = x + self.down(torch.relu(self.up(x)))
        result: Tensor = self.head(self.norm(x))
        return result


class Twice(nn.Module):
    """Two residual Linear layers with one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(6, 16), nn.Linear(16, 3)
        self.one, self.two = nn.Linear(16, 16), nn.Linear(16, 16)
        self.two.weight = self.one.weight

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + torch.relu(self.one(x))
        x = x + torch.relu(self.two(x))
        result: Tensor = self.head(x)
        return result


class Apart(nn.Module):
    """Two Linear layers with one weight that read channels of different layers."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.head = nn.Linear(6, 16), nn.Linear(6, 16), nn.Linear(8, 3)
        self.one, self.two = nn.Linear(16, 8), nn.Linear(16, 8)
        self.two.weight = self.one.weight

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.one(torch.relu(self.left(x))) + self.two(torch.relu(self.right(x))))
        result: Tensor = self.head(x)
        return result


TIED: dict[type[nn.Module], tuple[Tensor, str, str]] = {
    Language: (TOKENS, "embed", "head"),
    Twice: (VECTORS, "one", "two"),
    Apart: (VECTORS, "one", "two"),
}


def build(kind: type[nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return kind().eval()


def is_tied(model: Any, kind: type[nn.Module]) -> bool:
    _, one, other = TIED[kind]
    return getattr(model, one).weight is getattr(model, other).weight


def prune(kind: type[nn.Module], **options: Any) -> cleanai.PruneResult:
    inputs = TIED[kind][0]
    wanted = {"method": "magnitude", "ratio": 0.5, "round_to": None, **options}
    return cleanai.prune(build(kind), inputs[:1], [inputs], progress=False, **wanted)


@pytest.mark.parametrize("kind", TIED)
@pytest.mark.parametrize("repair", [False, "closed_form", "sequential", "unfolded"])
def test_a_shared_parameter_stays_shared(kind: type[nn.Module], repair: Any, tmp_path: Path) -> None:
    result = prune(kind, repair=repair)
    assert is_tied(result.model, kind)
    cleanai.save(result, tmp_path)
    loaded = cleanai.load(tmp_path, lambda: build(kind)).eval()
    assert is_tied(loaded, kind)
    with torch.no_grad():
        assert torch.equal(loaded(TIED[kind][0]), result.model(TIED[kind][0]))


def test_it_is_cut_and_counted_once() -> None:
    """Of a stream of 16 and 24 hidden features, 8 and 12 are left: 20 x 8, 8 x 12 + 12, 12 x 8 + 8, and 2 x 8."""
    result = prune(Language)
    assert result.model.head.weight.shape == (20, 8)
    assert result.plan.achieved["params"] == 160 + 108 + 104 + 16
    assert sum(value.numel() for value in result.model.parameters()) == 388


@pytest.mark.parametrize("kind", [Language, Twice])
def test_the_estimated_cost_is_that_of_the_cut_model(kind: type[nn.Module]) -> None:
    inputs = TIED[kind][0][:1]
    graph = ChannelGraph(build(kind), inputs)
    removed = {group.name: np.arange(0, group.num_channels, 4) for group in graph.groups}
    estimate = CostModel(graph).estimate({name: len(channels) for name, channels in removed.items()})
    graph.remove(removed)
    found = measure_complexity(graph.model, inputs)
    assert (estimate["macs"], estimate["params"]) == pytest.approx((found.macs, found.params), rel=1e-12)


def test_layers_that_would_lose_different_channels_keep_their_inputs() -> None:
    result = prune(Apart)
    assert set(result.plan.removed) == {"one"}  # The outputs of both, which are added up.
    told = " ".join(result.plan.warnings)
    assert "'left'" in told
    assert "'right'" in told
    assert "shares a weight with another layer" in told
    assert is_tied(result.model, Apart)
    unchecked = ChannelGraph(build(Apart), VECTORS[:1], check=False)
    with pytest.raises(PruningError, match=r"^layers 'one' and 'two' share a weight .* different channels of it; "):
        unchecked.remove({"left": [0]})
    assert is_tied(unchecked.model, Apart)
    assert unchecked.model.left.out_features == 16


def test_a_budget_counts_a_shared_parameter_once() -> None:
    result = prune(Language, ratio=None, budget={"params": 0.5}, mode="global")
    achieved = result.plan.achieved
    assert 0.45 <= achieved["params"] / achieved["params_dense"] <= 0.5
    assert is_tied(result.model, Language)
