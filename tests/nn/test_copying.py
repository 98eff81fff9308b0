"""Copies of modules in which passes have left tensors, and passes that leave none."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cleanai_ray.config.target import TargetSection
from cleanai_ray.evaluation.target_latency import open_target
from cleanai_ray.graph.graph import ChannelGraph
from cleanai_ray.graph.peer import prune_by_peer
from cleanai_ray.nn.copying import copied, leaving_no_trace
from cleanai_ray.profile import measure as profile


class Caching(nn.Module):
    """Keeps what it computes: in a dict, in a list, as an attribute, and as a new attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.cache, self.seen, self.last = nn.Linear(3, 3), {}, [], None
        self.register_buffer("held", torch.zeros(3), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.linear(x)
        self.cache["bias"], self.last, self.new = self.linear.bias * 2, (y, y + 1), 5
        self.seen.append([y])
        self.held = y[0]
        return y


def test_models_that_keep_computed_tensors_are_timed_profiled_and_trained() -> None:
    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last, self.kept = nn.Linear(3, 8), nn.Linear(8, 2), None

        def forward(self, x: Tensor) -> Tensor:
            self.kept = self.first.weight.square()
            return self.last(self.first(x).relu())

    model, example = Network().eval(), torch.ones(2, 3)
    model(example)
    with torch.no_grad():
        expected = model.last(model.first(example).relu())
    assert model.kept is not None
    assert not model.kept.is_leaf
    run = open_target(TargetSection(backend="torch"), "cpu").prepare(model, example)
    assert torch.allclose(torch.as_tensor(run()), expected)
    graph = ChannelGraph(model, example[:1])
    graph.model(example)  # what a pass leaves in it
    assert not graph.model.kept.is_leaf
    assert torch.equal(profile._copy_of(graph)(example), expected)
    smaller, removed = prune_by_peer(graph, 0.5, ["last"])
    assert smaller(example).shape == (2, 2)
    assert [len(channels) for channels in removed.values()] == [4]


def test_a_copy_has_the_values_that_autograd_computed_and_not_their_history() -> None:
    model = nn.Sequential(Caching())
    model(torch.ones(1, 3))
    with pytest.raises(RuntimeError, match="deepcopy"):
        __import__("copy").deepcopy(model)
    twin: Any = copied(model)[0]
    source: Any = model[0]
    for value, own in (
        (twin.cache["bias"], source.cache["bias"]),
        (twin.last[1], source.last[1]),
        (twin.seen[0][0], source.seen[0][0]),
        (twin.held, source.held),
    ):
        assert torch.equal(value, own)
        assert value is not own
        assert value.is_leaf
    assert twin.last[0] is twin.seen[0][0]  # One tensor stays one.
    assert twin.linear.weight is not source.linear.weight
    assert twin.linear.weight.requires_grad


def test_what_stands_in_for_an_object_is_taken_as_it_is() -> None:
    model = Caching()
    twin = copied(model, {id(model.linear.weight): model.linear.weight})
    assert twin.linear.weight is model.linear.weight
    assert twin.linear.bias is not model.linear.bias


def test_a_pass_leaves_no_trace() -> None:
    model = nn.Sequential(Caching())
    module: Any = model[0]
    module.cache["kept"] = cache_of = [1]
    cache, seen = module.cache, module.seen
    with leaving_no_trace(model):
        model(torch.ones(1, 3))
        assert hasattr(module, "new")
    assert not hasattr(module, "new")
    assert module.last is None
    assert module.cache is cache
    assert cache == {"kept": [1]}
    assert cache["kept"] is cache_of
    assert module.seen is seen
    assert seen == []
