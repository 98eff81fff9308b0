"""The cases of the conformance suites: everything that is in the registries."""

from __future__ import annotations

import torch
from small_nets import batches, build, example
from torch import nn

from cleanai_ray import api
from cleanai_ray.importance.base import create_method
from cleanai_ray.pruning.plan import PruningPlan
from cleanai_ray.registry import METHODS, METRICS

Case = tuple[str, str | None]
"""A method, and its coverage metric where it uses one."""

DEAD = {
    "plain": {"conv1": (1, 4), "conv2": (0, 3, 6)},
    "residual": {"conv2": (2, 5), "conv1": (1, 4, 7), "head": (0, 3)},
    "depthwise": {"depthwise": (0, 3, 7), "project": (2, 4)},
}
"""Channels that are made to be zero on all data: net -> group -> channels."""

_PRODUCERS = {
    ("residual", "conv2"): (("stem", "bn0"), ("conv2", "bn2")),
    ("residual", "conv1"): (("conv1", "bn1"),),
    ("residual", "head"): (("head", None),),
    ("plain", "conv1"): (("conv1", "bn1"),),
    ("plain", "conv2"): (("conv2", "bn2"),),
    ("depthwise", "depthwise"): (("expand", "bn1"), ("depthwise", "bn2")),
    ("depthwise", "project"): (("project", None),),
}
_READERS = {
    ("residual", "conv2"): ("conv1", "head"),
    ("residual", "conv1"): ("conv2",),
    ("residual", "head"): ("fc",),
    ("plain", "conv1"): ("conv2",),
    ("plain", "conv2"): ("fc",),
    ("depthwise", "depthwise"): ("project",),
    ("depthwise", "project"): ("fc",),
}


def method_cases() -> list[Case]:
    """Every registered method, once for each coverage metric where it uses one."""
    return [
        (name, metric)
        for name in METHODS.names()
        for metric in (METRICS.names() if create_method(name).uses_coverage_metric else (None,))
    ]


def calibrated_cases() -> list[Case]:
    """Those of the methods that say they read activations, gradients or sensitivity curves."""
    return [case for case in method_cases() if reads_calibration(case[0])]


def reads_calibration(name: str) -> bool:
    method = create_method(name)
    return method.needs_statistics or method.needs_curves


def case_id(case: Case) -> str:
    return "/".join(part for part in case if part)


@torch.no_grad()
def net_with_dead_channels(net: str) -> nn.Module:
    """A net whose channels DEAD are zero after the non-linearity, though they are read with very large weights.

    All other channels are made to be active on some data.
    """
    model = build(net)
    for group, channels in DEAD[net].items():
        dead = list(channels)
        for layer, norm in _PRODUCERS[net, group]:
            last = model.get_submodule(norm or layer)
            last.bias.fill_(0.5)
            for module in filter(None, (model.get_submodule(layer), norm and model.get_submodule(norm))):
                module.weight[dead] = 0.0
                module.bias[dead] = -50.0
        for reader in _READERS[net, group]:
            model.get_submodule(reader).weight[:, dead] *= 1000.0
    return model


def prune_dead(net: str, case: Case, mode: str) -> PruningPlan:
    """Prune a net with dead channels by at most as many channels as are dead, in every group and as a whole."""
    method, metric = case
    model = net_with_dead_channels(net)
    plan = api.prune(
        model,
        example(),
        batches(sizes=(8, 8)),
        method=method,
        coverage_metric=metric,
        mode=mode,
        ratio=0.26 if mode == "local" else 0.3,
    ).plan
    assert plan.removed, "the check needs a ratio that removes something"
    return plan


def survivors(plan: PruningPlan, net: str) -> list[str]:
    """Channels that went although they are alive: there must be none while dead ones are left."""
    return [
        f"{name}[{channel}]"
        for name, channels in plan.removed.items()
        for channel in channels
        if channel not in DEAD[net][name]
    ]
