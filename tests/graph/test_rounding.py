"""Rounding that a deep network makes larger is not taken for a wrong cut, and a small fault still is one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import cleanai_ray as cleanai
from cleanai_ray.errors import PruningError
from cleanai_ray.graph import rounding
from cleanai_ray.graph.graph import ChannelGraph

WIDTH, DEPTH, GAIN = 24, 11, 10.0


class Steep(nn.Module):
    """Each layer makes what differs in its input several times larger: 1e-7 is more than 1e-3 before the last."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(DEPTH))
        self.last = nn.Linear(WIDTH, 2)
        for layer in self.layers:
            nn.init.normal_(layer.weight, std=GAIN / WIDTH**0.5)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x).sin()
        return self.last(x)


class Leaky(nn.Module):
    """A hundredth of the channel on the other side is added to each."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.one, self.two = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.one(x)
        return self.two(x + 0.01 * x.flip(1))


def steep() -> nn.Module:
    return Steep().eval()


def values(width: int) -> Tensor:
    return torch.randn(2, width, generator=torch.Generator().manual_seed(1))


def test_rounding_that_grows_from_layer_to_layer_is_no_fault(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    half = {f"layers.{place}": range(WIDTH // 2) for place in range(DEPTH)}
    graph = ChannelGraph(steep(), values(WIDTH))
    assert (graph.notes, {group.name for group in graph.groups}) == ((), {*half})
    graph.remove(half)
    exact = steep().double()
    with torch.no_grad():
        for layer in exact.layers:
            layer.weight[: WIDTH // 2], layer.bias[: WIDTH // 2] = 0.0, 0.0
    torch.testing.assert_close(graph.model.double()(values(WIDTH).double()), exact(values(WIDTH).double()))
    result = cleanai.prune(steep(), values(WIDTH), method="magnitude", ratio=0.3, round_to=None)
    assert result.plan.warnings == ()
    cleanai.save(result, tmp_path)
    assert torch.equal(cleanai.load(tmp_path, steep).eval()(values(WIDTH)), result.model(values(WIDTH)))
    monkeypatch.setattr(rounding, "LARGEST", 0.0)  # Without the second look, the network is refused.
    with pytest.raises(PruningError, match="is wrong"):
        ChannelGraph(steep(), values(WIDTH), like=graph).remove(half)


def test_a_small_fault_is_found() -> None:
    graph = ChannelGraph(Leaky().eval(), values(6))
    assert graph.groups == ()
    (told,) = graph.notes
    assert told.startswith("layer 'one' keeps its width: what layer 'two' reads would change")
