"""Gradients of a model of which some or all weights are frozen."""

from __future__ import annotations

import pytest
import torch
from small_nets import batches, build, example

from cleanai_ray.api import calibrate, prune


@pytest.mark.parametrize("frozen", ["all", "conv1", "none"])
@pytest.mark.parametrize("method", ["taylor", "hessian"])
def test_frozen_weights_are_scored_like_any_others_and_stay_frozen(frozen: str, method: str) -> None:
    model = build("plain")
    expected = prune(model, example(), batches(), method=method, ratio=0.5).plan
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(frozen != "all" and not name.startswith(frozen))
    flags = {name: value.requires_grad for name, value in model.named_parameters()}
    result = prune(model, example(), batches(), method=method, ratio=0.5)
    assert result.plan.removed == expected.removed
    assert {name: value.requires_grad for name, value in model.named_parameters()} == flags
    assert {name: value.requires_grad for name, value in result.model.named_parameters()} == flags
    assert all(value.grad is None for value in model.parameters())


def test_gradients_of_frozen_weights_are_those_of_the_same_weights_unfrozen() -> None:
    model = build("plain")
    free = calibrate(model, batches(), gradients=True).gradients
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    for name, value in calibrate(model, batches(), gradients=True).gradients.items():
        torch.testing.assert_close(value, free[name])
