"""The sensitivity of whole networks: probes measure what pruning and compensation really do."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from small_nets import NETS, batches, build, example, tiny_vit
from torch import Tensor, nn

import cleanai_ray as cleanai
from cleanai_ray.config.sections import PruningSection
from cleanai_ray.config.study import Trial
from cleanai_ray.errors import PruningError
from cleanai_ray.graph.graph import ChannelGraph
from cleanai_ray.pruning.measurements import Measurements
from cleanai_ray.pruning.pruner import Pruner
from cleanai_ray.repair import RepairOptions, repair
from cleanai_ray.repair.moments import collect_moments
from cleanai_ray.repair.outputs import divergence, log_probabilities
from cleanai_ray.sensitivity import measure_curves, profile, reading_features


def images(sizes: tuple[int, ...] = (40, 40)) -> list[Tensor]:
    return [batch for batch, _ in batches(sizes=sizes)]


def curves_and_moments(model: nn.Module, data: list[Tensor], ignored: tuple[str, ...] = ()):
    graph = ChannelGraph(model, data[0][:2], ignored)
    features = reading_features(graph)
    moments = collect_moments(graph.model, data, layers=list(features), features=features)
    return measure_curves(graph, moments, data), moments


@pytest.mark.parametrize("net", list(NETS))
def test_every_group_has_a_curve_over_all_its_channels(net: str) -> None:
    model = build(net)
    curves = cleanai.measure_sensitivity(model, example(), images())
    graph = ChannelGraph(model, example())
    assert set(curves.groups) == {group.name for group in graph.groups}
    for group in graph.groups:
        curve = curves[group.name]
        assert len(set(curve.order) & set(range(group.num_units))) == len(curve.order)
        assert len(curve.order) == len(curve.errors) == group.num_units - 1
        assert list(curve.errors) == sorted(curve.errors)
        assert curve.probes, group.name


def test_a_transformer_has_curves_of_heads_and_of_the_dimensions_in_them() -> None:
    model = tiny_vit()
    curves = cleanai.measure_sensitivity(model, example(size=16, channels=3), batches(size=16, channels=3, classes=5))
    prefix = "encoder.layers.encoder_layer_0.self_attention"
    heads, queries, values = (curves[f"{prefix}.{name}"] for name in ("heads", "query", "value"))
    assert (heads.num_channels, heads.num_blocks, len(heads.order)) == (32, 8, 3)
    for inside in (queries, values):
        assert (inside.num_channels, inside.num_blocks, len(inside.order)) == (8, 1, 7)
    for curve in (heads, queries, values):
        assert list(curve.errors) == sorted(curve.errors)
        assert curve.probes


@pytest.mark.parametrize("net", ["depthwise", "concat", "flattened"])
def test_the_probe_measures_what_surgery_and_closed_form_do(net: str) -> None:
    model, data = build(net), images()
    curves, moments = curves_and_moments(model, data)
    reference = log_probabilities(model, data)
    graph = ChannelGraph(model, example())
    for group in graph.groups:
        curve = curves[group.name]
        count, measured = curve.probes[-1]
        others = tuple(other.name for other in graph.groups if other.name != group.name)
        trial = Trial(method="reconstruction", ratio=(count - 0.5) / group.num_channels)
        bounds, given = PruningSection(max_ratio=0.95, round_to=None), Measurements(curves=curves)
        result = Pruner(model, example(), trial, bounds=bounds, ignored_layers=others, measured=given).run()
        assert result.plan.removed[group.name] == tuple(sorted(curve.order[:count]))
        repaired = repair(
            model, result, data, RepairOptions(compensation="closed_form", batch_norm="none"), moments=moments
        )
        assert divergence(reference, log_probabilities(repaired.model, data)) == pytest.approx(measured, rel=1e-3)


def test_channels_that_copy_others_are_free_and_their_removal_does_no_harm() -> None:
    model = build("plain")
    with torch.no_grad():
        for copy, original in ((1, 0), (3, 2)):
            for module in (model.conv1, model.bn1):
                module.weight[copy], module.bias[copy] = module.weight[original], module.bias[original]
            model.bn1.running_mean[copy] = model.bn1.running_mean[original]
            model.bn1.running_var[copy] = model.bn1.running_var[original]
    curves, _ = curves_and_moments(model, images())
    curve = curves["conv1"]
    assert {frozenset({unit, unit ^ 1}) for unit in curve.order[:2]} == {frozenset({0, 1}), frozenset({2, 3})}
    assert curve.errors[1] < 1e-3
    assert curve.errors[2] > 5 * curve.errors[1]


def test_the_model_is_left_as_it_was() -> None:
    model = build("residual").train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    cleanai.measure_sensitivity(model, example(), images())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.training
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("mode", ["local", "global", "isomorphic"])
def test_a_budget_is_met_in_the_same_way_whatever_the_mode(mode: str) -> None:
    model, data = build("concat"), images()
    curves = cleanai.measure_sensitivity(model, example(), data)
    plans = [
        cleanai.prune(model, example(), method="reconstruction", mode=chosen, budget={"macs": 0.6}, curves=curves).plan
        for chosen in ("local", mode)
    ]
    assert plans[0].removed == plans[1].removed
    assert plans[0].achieved["macs"] <= 0.6 * plans[0].achieved["macs_dense"]


def test_in_local_mode_several_steps_remove_what_one_does() -> None:
    model, data = build("residual"), images()
    curves = cleanai.measure_sensitivity(model, example(), data)
    options = {"method": "reconstruction", "ratio": 0.5, "curves": curves}
    once = cleanai.prune(model, example(), steps=1, **options).plan.removed
    thrice = cleanai.prune(model, example(), steps=3, **options).plan.removed
    for name, channels in once.items():
        assert set(channels) <= set(thrice[name])
        assert set(thrice[name]) == set(curves[name].order[: len(thrice[name])])


def test_global_mode_removes_what_harms_least_over_all_groups() -> None:
    model, data = build("residual"), images()
    curves = cleanai.measure_sensitivity(model, example(), data)
    plan = cleanai.prune(
        model, example(), method="reconstruction", mode="global", ratio=0.3, curves=curves, round_to=None
    ).plan
    removed = {name: len(channels) for name, channels in plan.removed.items()}
    steps = [
        (price, name)
        for name, curve in curves.groups.items()
        for price in np.maximum.accumulate(curve.prices(np.arange(curve.num_channels)))
    ]
    expected: dict[str, int] = {}
    for _, name in sorted(steps)[: sum(removed.values())]:
        expected[name] = expected.get(name, 0) + 1
    assert removed == expected


def test_curves_of_another_model_are_refused_by_name() -> None:
    curves = cleanai.measure_sensitivity(build("plain"), example(), images())
    with pytest.raises(PruningError, match="no sensitivity curve for the group of layer"):
        cleanai.prune(build("depthwise"), example(), method="reconstruction", ratio=0.5, curves=curves)


def test_reconstruction_without_batches_or_curves_says_what_it_needs() -> None:
    with pytest.raises(PruningError, match="reads sensitivity curves, and none were given; pass batches or curves"):
        cleanai.prune(build("plain"), example(), method="reconstruction", ratio=0.5)


def test_of_many_groups_fewer_images_are_probed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Passes of all probes together are limited: a group has one probe for each share."""
    data, graph = images(), ChannelGraph(build(next(iter(NETS))), example())
    moments = curves_and_moments(graph.model, data)[1]
    monkeypatch.setattr(profile, "_LEAST_PROBE_IMAGES", 2)
    monkeypatch.setattr(profile, "MAX_PROBE_PASSES", 3 * len(graph.groups) * len(profile.PROBED_SHARES))
    few = measure_curves(graph, moments, data)
    monkeypatch.undo()
    three = measure_curves(graph, moments, [torch.cat(data)[:3]])
    assert few == three != measure_curves(graph, moments, data)
