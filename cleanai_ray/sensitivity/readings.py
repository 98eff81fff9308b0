"""What each layer reads of a dependency group, and its weight."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from cleanai_ray.graph.graph import ChannelGraph, ChannelGroup
from cleanai_ray.graph.group import Member
from cleanai_ray.importance.base import readers
from cleanai_ray.nn.attention import HeadChannels
from cleanai_ray.nn.consumers import features_per_channel, is_consumer, read_weight
from cleanai_ray.repair.moments import ConsumerMoments
from cleanai_ray.sensitivity.attention import query_reading
from cleanai_ray.sensitivity.elimination import Reading


def reading_features(graph: ChannelGraph) -> dict[str, int]:
    """Return the consumers that read a group of the graph, with the number of input features per channel."""
    found: dict[str, int] = {}
    for group in graph.groups:
        for name, members in _readers(graph, group).items():
            features = _features(graph, members)
            if features is not None:
                found[name] = features
    return found


def _readers(graph: ChannelGraph, group: ChannelGroup) -> dict[str, list[Member]]:
    """Return the layers that read a group, with the members that say in which inputs."""
    found: dict[str, list[Member]] = {}
    for member in readers(group):
        module = None if member.layer in graph.parameters else graph.model.get_submodule(member.layer)
        if module is not None and (is_consumer(module) or isinstance(module, (nn.Conv2d, HeadChannels))):
            found.setdefault(member.layer, []).append(member)
    return found


def _features(graph: ChannelGraph, members: Sequence[Member]) -> int | None:
    """Return the number of input features per channel of a layer; None if channels cannot be told apart."""
    first = np.concatenate([member.channels[member.roots == member.roots[0]] for member in members])
    kept = np.setdiff1d(np.arange(graph.width(members[0].layer, "in")), first)
    return features_per_channel(graph.model.get_submodule(members[0].layer), kept)


def group_readings(graph: ChannelGraph, group: ChannelGroup, moments: ConsumerMoments) -> dict[str, Reading]:
    """Return the reading of a group by each layer whose moments are known."""
    places = readers(group)
    if all(member.type == "HeadChannels" for member in places):
        return query_reading(group, places, moments, graph.width(places[0].layer, "in") // group.num_channels)
    found = {}
    unit_of = group.unit_of.tolist()
    for name, members in _readers(graph, group).items():
        if name not in moments:
            continue
        features = graph.width(name, "in") // len(moments[name].mean)
        channels: list[set[int]] = [set() for _ in range(group.num_units)]
        for member in members:
            for channel, root in zip(member.channels.tolist(), member.roots.tolist(), strict=True):
                channels[unit_of[root]].add(channel // features)
        module, covariance = graph.model.get_submodule(name), moments[name].covariance
        refitted = is_consumer(module)
        found[name] = Reading(
            weight=read_weight(module, features) if refitted else _grouped_weight(module),
            covariance=covariance if refitted else covariance.diagonal().diag(),
            units=torch.tensor([sorted(unit) for unit in channels]),
        )
    return found


def _grouped_weight(module: nn.Module) -> Tensor:
    """Return the weight of a convolution in groups as [outputs of a group, channels of all groups, kernel positions].

    Repair does not refit such a layer, nor does elimination, which takes its channels to be uncorrelated.
    """
    assert isinstance(module, nn.Conv2d)
    weight = read_weight(module)
    parts = weight.unflatten(0, (module.groups, -1))
    return parts.transpose(0, 1).flatten(1, 2)
