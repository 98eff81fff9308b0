"""Pruned copies of small networks, with chosen channels removed, and redundancy planted for them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from small_nets import build, tiny_vit
from torch import Tensor, nn

from cleanai_ray.graph.graph import ChannelGraph
from cleanai_ray.nn.hooks import count_hooks
from cleanai_ray.nn.open_attention import open_attention
from cleanai_ray.pruning.plan import PruningPlan
from cleanai_ray.pruning.prune_result import PruneResult
from cleanai_ray.repair import ModelPair


@dataclass(frozen=True)
class Case:
    """A dense network and what pruning made of it."""

    dense: nn.Module
    result: PruneResult

    def pair(self, model: nn.Module) -> ModelPair:
        """The dense network and a copy of the pruned one that may be changed."""
        kept_inputs, kept_outputs = self.result.kept_inputs, self.result.kept_outputs
        return ModelPair(dense=self.dense, pruned=model, kept_inputs=kept_inputs, kept_outputs=kept_outputs)

    @staticmethod
    def untouched(dense: nn.Module) -> Case:
        """A result that removed nothing."""
        return _case(dense, copy.deepcopy(dense), {}, {})


def _case(dense: nn.Module, model: nn.Module, kept_inputs: Any, kept_outputs: Any) -> Case:
    plan = PruningPlan(model={}, groups=())
    return Case(
        open_attention(dense),
        PruneResult(model=model, plan=plan, layers=(), kept_inputs=kept_inputs, kept_outputs=kept_outputs),
    )


def cut(dense: nn.Module, removed: dict[str, list[int]]) -> Case:
    """Remove channels of groups, named by any layer whose outputs they hold."""
    weight = next(dense.parameters())
    size = 16 if hasattr(dense, "encoder") else 8
    channels = 3 if size == 16 else 2
    graph = ChannelGraph(dense, torch.zeros(1, channels, size, size, dtype=weight.dtype))
    names = {member.layer: group.name for group in graph.groups for member in group.members if member.side != "in"}
    graph.remove({names[layer]: channels for layer, channels in removed.items()})
    return _case(dense, graph.model, graph.kept("in"), graph.kept("out"))


REMOVED = {
    "plain": {"conv1": [1, 4], "conv2": [0, 5, 6]},
    "residual": {"stem": [2, 5], "conv1": [0, 3, 7], "head": [4]},
    "depthwise": {"expand": [2, 6], "project": [1]},
    "concat": {"stem": [3], "left": [1, 4], "right": [0, 5], "mix": [6]},
    "flattened": {"conv1": [0], "conv2": [1, 3], "fc1": [2, 9]},
    "vit": {"encoder.layers.encoder_layer_0.mlp.0": [0, 5, 40], "encoder.layers.encoder_layer_1.mlp.0": [63]},
}


def random_case(name: str, dtype: torch.dtype = torch.float64) -> Case:
    """A network of random weights, pruned."""
    dense = tiny_vit() if name == "vit" else build(name)
    return cut(dense.to(dtype), REMOVED[name])


def planted_case(name: str) -> Case:
    """A network whose removed channels are exact combinations of kept ones, wherever they are read."""
    dense = tiny_vit() if name == "vit" else build(name)
    with torch.no_grad():
        PLANTS[name](dense)
    return cut(dense, REMOVED[name])


def images_for(name: str, number: int = 60, dtype: torch.dtype = torch.float32) -> Tensor:
    """Random images [number, C, H, W] for a network."""
    shape = (3, 16, 16) if name == "vit" else (2, 8, 8)
    return torch.randn(number, *shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64).to(dtype)


class Tokens(nn.Module):
    """Integer tokens, a residual layer of 16 hidden units and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.up, self.down = nn.Embedding(11, 8), nn.Linear(8, 16), nn.Linear(16, 8)
        self.position, self.head = nn.Parameter(torch.randn(1, 5, 8)), nn.Linear(8, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens) + self.position
        x = x + self.down(torch.relu(self.up(x)))
        return self.head(x).mean(dim=1)


@torch.no_grad()
def tokens_pair(*, planted: bool) -> ModelPair:
    """A network of tokens, whose first four hidden units are removed, and are copies of others if planted; float64."""
    dense, kept = Tokens().double().eval(), np.arange(4, 16)
    if planted:
        dense.up.weight[:4], dense.up.bias[:4] = dense.up.weight[4:8], dense.up.bias[4:8]
    pruned = copy.deepcopy(dense)
    pruned.up.weight, pruned.up.bias = nn.Parameter(dense.up.weight[kept]), nn.Parameter(dense.up.bias[kept])
    pruned.down.weight = nn.Parameter(dense.down.weight[:, kept])
    return ModelPair(dense=dense, pruned=pruned, kept_inputs={"down": kept}, kept_outputs={"up": kept})


def combine(layer: nn.Module, norm: nn.Module | None, removed: list[int], mixes: list[dict[int, float]]) -> None:
    """Make removed outputs of layer (and norm, in eval mode) combinations of others, constant included.

    Weights become positive, and outputs so much above zero that a rectifier behind them lets everything pass.
    """
    layer.weight.abs_()
    scale, offset = _affine(layer, norm)
    lift = 8 - offset
    _add_constant(layer, norm, lift)
    offset = torch.full_like(offset, 8.0)
    for channel, mix in zip(removed, mixes, strict=True):
        weight = sum(share * scale[k] * layer.weight[k] for k, share in mix.items())
        layer.weight[channel] = weight / scale[channel]
        wanted = sum(share * offset[k] for k, share in mix.items())
        change = torch.zeros_like(offset)
        change[channel] = wanted - offset[channel]
        _add_constant(layer, norm, change)


def _affine(layer: nn.Module, norm: nn.Module | None) -> tuple[Tensor, Tensor]:
    bias = layer.bias.clone()
    if norm is None:
        return torch.ones_like(bias), bias
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    return scale, norm.bias + scale * (bias - norm.running_mean)


def _add_constant(layer: nn.Module, norm: nn.Module | None, constant: Tensor) -> None:
    (layer if norm is None else norm).bias.add_(constant)


def _plain(net: nn.Module) -> None:
    combine(net.conv1, net.bn1, [1, 4], [{0: 0.4, 2: 0.6}, {5: 0.5, 3: 0.3}])
    combine(net.conv2, net.bn2, [0, 5, 6], [{1: 1.0}, {2: 0.2, 3: 0.2}, {7: 0.5}])


def _residual(net: nn.Module) -> None:
    mixes = [{0: 0.5, 1: 0.7}, {3: 0.9, 4: 0.1}]
    combine(net.stem, net.bn0, [2, 5], mixes)
    combine(net.conv2, net.bn2, [2, 5], mixes)
    combine(net.conv1, net.bn1, [0, 3, 7], [{1: 0.5}, {2: 0.4, 4: 0.4}, {5: 0.3, 6: 0.6}])
    combine(net.head, None, [4], [{0: 0.4, 2: 0.4}])


def _depthwise(net: nn.Module) -> None:
    # A combination passes through a depthwise layer only if all of its channels are treated alike.
    mixes = [{0: 0.5, 1: 0.4}, {3: 0.3, 7: 0.8}]
    combine(net.expand, net.bn1, [2, 6], mixes)
    net.depthwise.weight.copy_(net.depthwise.weight[:1].abs().expand_as(net.depthwise.weight))
    net.depthwise.bias.zero_()
    net.bn2.weight.fill_(0.8)
    net.bn2.running_var.fill_(1.0)
    net.bn2.running_mean.zero_()
    net.bn2.bias.fill_(3.0)
    for channel, mix in zip([2, 6], mixes, strict=True):
        net.bn2.bias[channel] = 3.0 * sum(mix.values())
    combine(net.project, None, [1], [{0: 0.5, 5: 0.6}])


def _concat(net: nn.Module) -> None:
    combine(net.stem, None, [3], [{0: 0.5, 2: 0.5}])
    combine(net.left, None, [1, 4], [{0: 0.5, 2: 0.2}, {3: 0.9}])
    combine(net.right, None, [0, 5], [{1: 0.5, 2: 0.2}, {3: 0.3, 4: 0.3}])
    net.bn.bias.fill_(8.0)
    combine(net.mix, None, [6], [{0: 0.5, 1: 0.6}])


def _flattened(net: nn.Module) -> None:
    # The largest of several sums is not the sum of the largest: behind max pooling, multiples only.
    combine(net.conv1, None, [0], [{2: 0.5}])
    combine(net.conv2, None, [1, 3], [{0: 0.7}, {4: 0.4}])
    combine(net.fc1, None, [2, 9], [{0: 0.5, 1: 0.3}, {8: 1.0}])


def _vit(net: nn.Module) -> None:
    for layer, removed, twin in ((0, 0, 1), (0, 5, 7), (0, 40, 41), (1, 63, 2)):
        linear = net.encoder.layers[layer].mlp[0]
        linear.weight[removed], linear.bias[removed] = linear.weight[twin], linear.bias[twin]


PLANTS = {
    "plain": _plain,
    "residual": _residual,
    "depthwise": _depthwise,
    "concat": _concat,
    "flattened": _flattened,
    "vit": _vit,
}


def assert_only_weights_change(case: Case, train: Callable[[ModelPair], object]) -> None:
    """Train a pruned copy, and find modes, flags, gradients and the dense model as they were, and no hooks."""
    pruned = copy.deepcopy(case.result.model)
    for model in (case.dense, pruned):
        model.train()
        model.bn1.eval()
        model.conv1.weight.requires_grad_(False)
    gradient = torch.ones_like(pruned.fc.weight)
    pruned.fc.weight.grad = gradient
    before = copy.deepcopy(case.dense.state_dict())
    modes = [module.training for module in pruned.modules()]
    train(case.pair(pruned))
    assert all(torch.equal(value, before[key]) for key, value in case.dense.state_dict().items())
    assert [module.training for module in case.dense.modules()] == modes
    assert [module.training for module in pruned.modules()] == modes
    assert [name for name, value in pruned.named_parameters() if not value.requires_grad] == ["conv1.weight"]
    assert [name for name, value in pruned.named_parameters() if value.grad is not None] == ["fc.weight"]
    assert pruned.fc.weight.grad is gradient
    assert all(value.grad is None for value in case.dense.parameters())
    assert count_hooks(case.dense) == count_hooks(pruned) == 0
