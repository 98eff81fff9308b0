"""The self-check compares every number that a model returns, whatever holds it and whatever its type."""

from __future__ import annotations

import copy
from collections import UserDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from cleanai_ray.graph.cutting import Cuts, cut
from cleanai_ray.graph.silencing import OUTPUT, difference, read, silenced
from cleanai_ray.nn.calls import tensors_in
from cleanai_ray.nn.replay import _alike


@dataclass
class Found:
    boxes: Tensor
    name: str = "found"


HOLDERS: dict[str, Callable[[Tensor], Any]] = {
    "alone": lambda x: x,
    "list of dicts": lambda x: [{"boxes": x, "labels": torch.arange(2)}],
    "dict of dicts": lambda x: {"head": {"boxes": (None, x)}},
    "mapping": lambda x: UserDict({"boxes": x}),
    "data class": lambda x: {"head": [Found(x)]},
    "complex": lambda x: torch.complex(torch.ones_like(x), x),
    "complex in a list": lambda x: [{"boxes": torch.complex(torch.ones_like(x), x)}],
}


class Net(nn.Module):
    def __init__(self, holder: Callable[[Tensor], Any]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last, self.holder = nn.Linear(3, 4), nn.Linear(4, 2), holder

    def forward(self, x: Tensor) -> Any:
        return self.holder(self.last(self.first(x)))


@pytest.mark.parametrize("holder", HOLDERS)
def test_a_wrong_cut_is_seen_in_every_output(holder: str) -> None:
    model, inputs = Net(HOLDERS[holder]), torch.randn(1, 3, generator=torch.Generator().manual_seed(1))
    gone = np.array([1])
    right: Cuts = {("first", "out"): gone, ("last", "in"): gone}
    wrong: Cuts = {("first", "out"): gone, ("last", "in"): np.array([2])}
    expected = silenced(model, inputs, right, {})
    for cuts, place in ((right, None), (wrong, OUTPUT)):
        smaller = copy.deepcopy(model)
        cut(smaller, cuts, {})
        assert difference(expected, read(smaller, inputs, cuts, {})) == place


def test_imaginary_parts_count() -> None:
    one = torch.tensor([1 + 2j, 3 - 1j])
    other = torch.complex(one.real, -one.imag)
    assert difference([(OUTPUT, one)], [(OUTPUT, one.clone())]) is None
    assert difference([(OUTPUT, one)], [(OUTPUT, other)]) == OUTPUT
    assert difference([(OUTPUT, one)], [(OUTPUT, one.real)]) == OUTPUT
    assert _alike({"z": one}, {"z": one.clone()})
    assert not _alike({"z": one}, {"z": other})


def test_a_class_of_data_is_no_data() -> None:
    assert tensors_in([Found, None, "text", Found(torch.ones(2))])[0].tolist() == [1.0, 1.0]
