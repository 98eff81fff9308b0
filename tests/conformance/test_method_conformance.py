"""Every registered importance method, and the rules for all of them, above all that high means keep."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from conformance_cases import (
    DEAD,
    Case,
    calibrated_cases,
    case_id,
    method_cases,
    net_with_dead_channels,
    prune_dead,
    reads_calibration,
    survivors,
)
from small_nets import NETS, batches, build, example, tiny_vit
from torch import Tensor, nn

from cleanai_ray import api, calibrate
from cleanai_ray.errors import PruningError
from cleanai_ray.graph.graph import ChannelGraph, ChannelGroup
from cleanai_ray.importance.base import ScoringContext, create_method, give_gradients, score_groups
from cleanai_ray.importance.curves import SensitivityCurves
from cleanai_ray.registry import METHODS
from cleanai_ray.statistics import ActivationStatistics


@cache
def network(net: str) -> tuple[nn.Module, Tensor, ActivationStatistics, SensitivityCurves]:
    if net == "vit":
        model, inputs, data = tiny_vit(), example(size=16, channels=3), batches(size=16, channels=3, classes=5)
    else:
        model, inputs, data = build(net), example(), batches()
    statistics = calibrate(model, data, sections=16, gradients=True, squared_gradients=True)
    return model, inputs, statistics, api.measure_sensitivity(model, inputs, data)


def context(net: str, case: Case, seed: int = 0) -> ScoringContext:
    model, inputs, statistics, curves = network(net)
    name, metric = case
    graph = ChannelGraph(model, inputs)
    give_gradients(graph, create_method(name), statistics)
    return ScoringContext(graph=graph, statistics=statistics, coverage_metric=metric, seed=seed, curves=curves)


def score_or_skip(case: Case, net: str, group: ChannelGroup, context: ScoringContext) -> Tensor:
    """Scores of a group; a method that reads weights alone may refuse a kind of layer, in so many words."""
    try:
        return create_method(case[0]).score(group, context)
    except PruningError as error:
        if net == "plain" or reads_calibration(case[0]) or f"'{group.name}'" not in str(error):
            raise
        pytest.skip(f"{case[0]} refuses {net}: {error}")


@pytest.mark.parametrize("net", [*NETS, "vit"])
@pytest.mark.parametrize("case", method_cases(), ids=case_id)
def test_scores_are_finite_float64_one_a_channel_and_repeatable(case: Case, net: str) -> None:
    first, second = context(net, case), context(net, case)
    for group, again in zip(first.graph.groups, second.graph.groups, strict=True):
        scores = score_or_skip(case, net, group, first)
        assert scores.dtype == torch.float64
        assert scores.shape == (group.num_channels,)
        assert torch.isfinite(scores).all()
        assert torch.equal(scores, create_method(case[0]).score(again, second))


@pytest.mark.parametrize("case", method_cases(), ids=case_id)
def test_scoring_changes_neither_model_nor_statistics(case: Case) -> None:
    found = context("plain", case)
    before = {key: value.clone() for key, value in found.graph.model.state_dict().items()}
    assert found.statistics is not None
    content = found.statistics.to_bytes()
    score_groups(create_method(case[0]), found)
    assert all(torch.equal(value, before[key]) for key, value in found.graph.model.state_dict().items())
    assert found.statistics.to_bytes() == content


def test_the_planted_channels_are_dead_and_all_others_alive() -> None:
    """The ground under the tests below: what is dead was worked out on the data."""
    for net, groups in DEAD.items():
        statistics = calibrate(net_with_dead_channels(net), batches(sizes=(8, 8)))
        graph = ChannelGraph(net_with_dead_channels(net), example())
        assert {group.name for group in graph.groups} == set(groups)
        for group in graph.groups:
            for member in group.members:
                if member.side == "in":
                    silent = (statistics.inputs[member.layer].maximum == 0).nonzero().flatten().tolist()
                    assert tuple(silent) == groups[group.name], (net, member.layer)
                    weight = graph.model.get_submodule(member.layer).weight.transpose(0, 1).flatten(1)
                    weights = weight.abs().sum(dim=1)
                    loud = set(weights.argsort(descending=True)[: len(silent)].tolist())
                    assert loud == set(silent), "the dead channels are read with the largest weights"


@pytest.mark.parametrize("mode", ["local", "global"])
@pytest.mark.parametrize("net", list(DEAD))
@pytest.mark.parametrize("case", calibrated_cases(), ids=case_id)
def test_channels_that_are_dead_on_the_data_go_first(case: Case, net: str, mode: str) -> None:
    assert survivors(prune_dead(net, case, mode), net) == []


def test_the_check_applies_to_the_methods_that_read_calibration_data() -> None:
    assert {"coverage", "adaptive", "wanda", "taylor"} <= {name for name, _ in calibrated_cases()}
    assert not {"magnitude", "random"} & {name for name, _ in calibrated_cases()}
    assert all(reads_calibration(name) for name, _ in calibrated_cases())


@pytest.mark.parametrize("mode", ["local", "global"])
@pytest.mark.parametrize("net", list(DEAD))
def test_weights_alone_do_not_find_the_dead_channels(net: str, mode: str) -> None:
    """Only activity can tell: magnitude keeps them, so a method that ignored its data would be noticed."""
    assert survivors(prune_dead(net, ("magnitude", None), mode), net)


def negated(score: Tensor) -> Tensor:
    return score.max() - score


def inverted(score: Tensor) -> Tensor:
    return 1.0 / (score + 1e-3)


@pytest.mark.parametrize("mode", ["local", "global"])
@pytest.mark.parametrize("turn", [negated, inverted])
@pytest.mark.parametrize("net", list(DEAD))
@pytest.mark.parametrize("case", calibrated_cases(), ids=case_id)
def test_a_score_the_wrong_way_round_is_noticed(
    case: Case, net: str, turn: object, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, metric = case
    original = METHODS.get(name)

    class Backwards(original):  # type: ignore[misc, valid-type]
        """The method with low = keep."""

        def score(self, group: ChannelGroup, context: ScoringContext) -> Tensor:
            return turn(super().score(group, context))  # type: ignore[operator]

    for attribute in ("_values", "_summaries"):
        monkeypatch.setattr(METHODS, attribute, getattr(METHODS, attribute).copy())
    METHODS.register("backwards")(Backwards)
    assert survivors(prune_dead(net, ("backwards", metric), mode), net)


@pytest.mark.parametrize("case", method_cases(), ids=case_id)
def test_the_same_seed_gives_the_same_plan_and_the_model_is_left_alone(case: Case) -> None:
    name, metric = case
    model, data = build("residual").train(), batches()
    model.bn1.eval()
    model.fc.weight.requires_grad_(False)
    model.stem.weight.grad = torch.ones_like(model.stem.weight)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    training = [module.training for module in model.modules()]
    flags = {key: value.requires_grad for key, value in model.named_parameters()}

    plans = {
        api.prune(
            model, example(), data, method=name, coverage_metric=metric, ratio=0.4, seed=3, ignored_layers=["head"]
        ).plan.to_json()
        for _ in range(2)
    }
    assert len(plans) == 1
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert [module.training for module in model.modules()] == training
    assert {key: value.requires_grad for key, value in model.named_parameters()} == flags
    assert torch.equal(model.stem.weight.grad, torch.ones_like(model.stem.weight))
    assert all(value.grad is None for key, value in model.named_parameters() if key != "stem.weight")
    tables = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    assert not any(getattr(module, table) for module in model.modules() for table in tables)


@pytest.mark.parametrize("case", method_cases(), ids=case_id)
def test_a_pruned_model_is_as_the_dense_one_was(case: Case) -> None:
    """Its flags are the dense model's, and it carries no gradient and no hook."""
    name, metric = case
    model = build("depthwise").train()
    model.bn2.eval()
    model.fc.bias.requires_grad_(False)
    options = {"method": name, "coverage_metric": metric, "ignored_layers": ["project"]}
    pruned = api.prune(model, example(), batches(), ratio=0.4, **options).model
    assert [module.training for module in pruned.modules()] == [module.training for module in model.modules()]
    flags = {key: value.requires_grad for key, value in model.named_parameters()}
    assert {key: value.requires_grad for key, value in pruned.named_parameters()} == flags
    assert all(value.grad is None for value in pruned.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in pruned.modules())
