"""Optimal brain damage by squared gradients: by hand, and in steps."""

from __future__ import annotations

import copy

import pytest
import torch
from small_nets import batches, build, example
from torch.nn import functional

from cleanai_ray import api, calibrate
from cleanai_ray.errors import PruningError
from cleanai_ray.graph.graph import ChannelGraph
from cleanai_ray.importance.base import ScoringContext, create_method, give_gradients


def test_it_is_weight_squared_times_the_mean_squared_gradient_of_single_samples() -> None:
    model, ((images, targets),) = build("plain"), batches(sizes=(6,))
    # The filters of conv1, the batch norm's scale and the weights of conv2 that read the channel; torch-pruning takes
    # the mean over the layers, and divides by the mean over the channels.
    total = torch.zeros(6, dtype=torch.float64)
    for image, target in zip(images, targets, strict=True):
        twin = copy.deepcopy(model)
        functional.cross_entropy(twin(image[None]), target[None]).backward()
        for weight, axes in ((twin.conv1.weight, (1, 2, 3)), (twin.bn1.weight, ()), (twin.conv2.weight, (0, 2, 3))):
            saliency = (weight.detach() * weight.grad).double().square()
            total += saliency.sum(dim=axes) if axes else saliency
    statistics = calibrate(model, [(images, targets)], squared_gradients=True)
    graph, method = ChannelGraph(model, example()), create_method("hessian")
    give_gradients(graph, method, statistics)
    group = next(group for group in graph.groups if group.name == "conv1")
    found = method.score(group, ScoringContext(graph=graph))
    torch.testing.assert_close(found, total / total.mean(), rtol=1e-4, atol=1e-6)


def test_shards_and_batches_give_the_same_plan() -> None:
    model, data = build("residual"), batches(sizes=(5, 7, 4))
    first, second, third = (calibrate(model, [batch], squared_gradients=True) for batch in data)
    merged = api.prune(model, example(), method="hessian", ratio=0.5, steps=2, stats=third + (second + first))
    assert merged.plan == api.prune(model, example(), data, method="hessian", ratio=0.5, steps=2).plan
    images, targets = (torch.cat([batch[i] for batch in data]) for i in (0, 1))
    one = api.prune(model, example(), [(images, targets)], method="hessian", ratio=0.5, steps=2)
    assert one.plan.removed == merged.plan.removed


def test_statistics_without_squared_gradients_are_refused() -> None:
    statistics = calibrate(build("plain"), batches(), gradients=True)
    with pytest.raises(PruningError, match=r"reads squared gradients.* calibrate with squared_gradients=True"):
        api.prune(build("plain"), example(), method="hessian", ratio=0.5, stats=statistics)
    squared = calibrate(build("plain"), batches(), squared_gradients=True)
    with pytest.raises(PruningError, match=r"method 'taylor' reads gradients.* calibrate with gradients=True"):
        api.prune(build("plain"), example(), method="taylor", ratio=0.5, stats=squared)
    with pytest.raises(PruningError, match="method 'hessian' reads calibration data, and none was given"):
        api.prune(build("plain"), example(), method="hessian", ratio=0.5)
