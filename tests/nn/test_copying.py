"""Copies of modules in which passes have left tensors, and passes that leave none."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cleanai_ray.nn.copying import copied, leaving_no_trace


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
