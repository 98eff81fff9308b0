"""Batches as loaders give them: tensors, lists of one or two, dicts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from small_nets import batches, build, example
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from cleanai_ray.api import calibrate, prune
from cleanai_ray.errors import CalibrationError, PruningError

FORMS: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "pair": lambda x, y: (x, y),
    "list": lambda x, y: [x, y],
    "dict": lambda x, y: {"pixel_values": x, "labels": y},
    "other names": lambda x, y: {"index": 3, "image": x, "label": y},
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("method", ["coverage", "taylor"])
@pytest.mark.parametrize("repair", [False, True])
def test_every_form_gives_the_plan_of_pairs(form: str, method: str, repair: bool) -> None:
    model, data = build("plain"), batches()
    given = [FORMS[form](*pair) for pair in data]
    expected = prune(model, example(), data, method=method, ratio=0.5, repair=repair)
    for batches_given in (given, iter(given)):
        found = prune(model, example(), batches_given, method=method, ratio=0.5, repair=repair)
        assert found.plan.removed == expected.plan.removed
        torch.testing.assert_close(found.model(example()), expected.model(example()))


@pytest.mark.parametrize("form", [lambda x: x, lambda x: [x], lambda x: (x,), lambda x: {"x": x}])
def test_inputs_alone(form: Callable[[Tensor], Any]) -> None:
    inputs = [x for x, _ in batches()]
    expected = calibrate(build("plain"), inputs)
    found = calibrate(build("plain"), [form(x) for x in inputs])
    for name, value in expected.inputs.items():
        assert torch.equal(found.inputs[name].root_mean_square, value.root_mean_square)
    with pytest.raises(CalibrationError, match="this batch has no targets"):
        calibrate(build("plain"), [form(x) for x in inputs], gradients=True)


def test_a_loader_of_a_tensor_data_set() -> None:
    images = torch.cat([x for x, _ in batches()])
    result = prune(build("plain"), example(), DataLoader(TensorDataset(images), batch_size=4), ratio=0.5)
    assert result.plan.removed == prune(build("plain"), example(), list(images.split(4)), ratio=0.5).plan.removed


@pytest.mark.parametrize(
    ("batch", "told"),
    [
        ({"a": torch.ones(1), "b": 2}, r"a dict with the keys 'a', 'b'; allowed: inputs under one of 'pixel_values'"),
        ((torch.ones(1), 1, 2), r"a batch is a tuple of 3; allowed: a tensor of inputs, a pair"),
        (("name", 1), r"the inputs of a batch are a str; allowed: one tensor"),
        (3, r"a batch is a int; allowed"),
    ],
)
def test_other_forms_are_refused_in_one_sentence(batch: Any, told: str) -> None:
    with pytest.raises(CalibrationError, match=told):
        calibrate(build("plain"), [batch])


@pytest.mark.parametrize("budget", [0.5, "half", [0.5]])
def test_a_budget_that_names_no_resource_is_refused_in_one_sentence(budget: Any) -> None:
    with pytest.raises(PruningError, match="budget"):
        prune(build("plain"), example(), method="magnitude", budget=budget)
