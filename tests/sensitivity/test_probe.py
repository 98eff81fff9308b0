"""Probes: whatever is kept from one to the next changes no result, and the model is put back."""

from __future__ import annotations

import copy
from contextlib import ExitStack

import pytest
import torch
from small_nets import NETS, batches, build, tiny_vit
from torch import Tensor, nn

from cleanai_ray.graph.graph import ChannelGraph
from cleanai_ray.nn.batches import FastLayout
from cleanai_ray.nn.hooks import count_hooks
from cleanai_ray.repair.moments import collect_moments
from cleanai_ray.repair.outputs import divergence, log_probabilities
from cleanai_ray.sensitivity import probe as probe_module
from cleanai_ray.sensitivity.probe import Probe
from cleanai_ray.sensitivity.readings import group_readings, reading_features


def opened(net: str) -> tuple[ChannelGraph, list[Tensor], dict, object]:
    shape = {"size": 16, "channels": 3, "classes": 5} if net == "vit" else {}
    model = tiny_vit() if net == "vit" else build(net)
    images = [values for values, _ in batches(sizes=(20, 20), **shape)]
    graph = ChannelGraph(model, images[0][:2])
    features = reading_features(graph)
    moments = collect_moments(graph.model, images, layers=list(features), features=features)
    return graph, images, {group.name: group_readings(graph, group, moments) for group in graph.groups}, moments


@pytest.mark.parametrize("net", [*NETS, "vit"])
def test_a_probe_equals_a_whole_pass_of_a_changed_copy_in_any_order(net: str, monkeypatch) -> None:
    graph, images, readings, moments = opened(net)
    reference = log_probabilities(graph.model, images)
    probe = Probe(graph.model, moments, images, 1e-3)
    forwards = {name: probe.measure(found, [0, 1]) for name, found in readings.items()}
    backwards = {name: probe.measure(readings[name], [0, 1]) for name in reversed(list(readings))}
    assert forwards == pytest.approx(backwards, rel=1e-6, abs=1e-12)
    monkeypatch.setattr(probe_module, "working_bytes", lambda device: 0)
    small_batches = FastLayout(size=3, channels_last=False)
    monkeypatch.setattr(probe_module, "fast_layout", lambda model, image: small_batches)
    small = Probe(graph.model, moments, images, 1e-3)
    for name, found in readings.items():
        assert small.measure(found, [0, 1]) == pytest.approx(forwards[name], rel=1e-3, abs=1e-9)
        changed = copy.deepcopy(graph.model)
        whole = Probe(changed, moments, images, 1e-3)
        with whole_fold(whole, found, [0, 1]):
            expected = divergence(reference, log_probabilities(changed, images))
        assert forwards[name] == pytest.approx(expected, rel=1e-3, abs=1e-9)
        assert expected > 0


def whole_fold(probe: Probe, readings: dict, units: list[int]) -> ExitStack:
    """Fold every reader, without running anything."""
    stack = ExitStack()
    for name, found in readings.items():
        stack.enter_context(probe._folded(name, found, found.units[units].flatten()))
    return stack


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("net", [*NETS, "vit", "without bias"])
def test_the_model_is_put_back_even_if_a_pass_fails(net: str, fails: bool, monkeypatch) -> None:
    graph, images, readings, moments = opened("plain" if net == "without bias" else net)
    if net == "without bias":
        graph.model.fc.bias = None
    model: nn.Module = graph.model
    probe = Probe(model, moments, images, 1e-3)
    before = copy.deepcopy(model.state_dict())
    parameters = dict(model.named_parameters())

    def broken(*args, **kwargs):
        raise RuntimeError("out of memory")

    if fails:
        monkeypatch.setattr(probe_module, "log_probabilities", broken)
    for found in readings.values():
        if fails:
            with pytest.raises(RuntimeError, match="out of memory"):
                probe.measure(found, [0, 1])
        else:
            probe.measure(found, [0, 1])
        after = model.state_dict()
        assert list(after) == list(before)
        assert all(torch.equal(value, after[key]) for key, value in before.items())
        assert all(parameters[name] is value for name, value in model.named_parameters())
        assert count_hooks(model) == 0


def test_layers_before_the_group_are_not_run_again() -> None:
    graph, images, readings, moments = opened("plain")
    probe = Probe(graph.model, moments, images, 1e-3)
    original = graph.model.conv1.forward
    runs = []
    graph.model.conv1.forward = lambda x: runs.append(len(x)) or original(x)
    probe.measure(readings["conv2"], [0])  # Computes what the group's readers read, once.
    first = sum(runs)
    assert first == 40
    probe.measure(readings["conv2"], [0, 1])
    probe.measure(readings["conv2"], [0, 1, 2])
    assert sum(runs) == first
