"""Geometric means of two methods: their scores, their needs, and combinations that are refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from small_nets import batches, build, example
from torch import Tensor

from cleanai_ray import api, calibrate
from cleanai_ray.errors import CalibrationError, StudyError
from cleanai_ray.graph.graph import ChannelGraph, ChannelGroup
from cleanai_ray.importance.base import ImportanceMethod, ScoringContext, create_method, give_gradients
from cleanai_ray.registry import METHODS
from cleanai_ray.statistics import ActivationStatistics


def scores(method: ImportanceMethod, statistics: ActivationStatistics, metric: str | None = None) -> list[Tensor]:
    graph = ChannelGraph(build("residual"), example())
    give_gradients(graph, method, statistics)
    context = ScoringContext(graph=graph, statistics=statistics, coverage_metric=metric, seed=4)
    return [method.score(group, context) for group in graph.groups]


@pytest.fixture(scope="module")
def statistics() -> ActivationStatistics:
    return calibrate(build("residual"), batches(), sections=16, outputs=True, gradients=True, squared_gradients=True)


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        ({}, (("wanda", {}), ("magnitude", {}))),
        ({"first": "coverage", "second": "hessian"}, (("coverage", {}), ("hessian", {}))),
        ({"first": "random", "second": "taylor"}, (("random", {}), ("taylor", {}))),
        (
            {"second": "wanda", "second_options": {"variant": "producer"}},
            (("wanda", {}), ("wanda", {"variant": "producer"})),
        ),
    ],
)
def test_it_is_the_geometric_mean_of_normalised_scores(
    options: dict[str, Any], parts: Any, statistics: ActivationStatistics
) -> None:
    found = scores(create_method("hybrid", options), statistics, "entropy")
    first, second = (scores(create_method(name, own), statistics, "entropy") for name, own in parts)
    for hybrid, a, b in zip(found, first, second, strict=True):
        expected = [float((x / a.mean()) * (y / b.mean())) ** 0.5 for x, y in zip(a, b, strict=True)]
        torch.testing.assert_close(hybrid, torch.tensor(expected, dtype=torch.float64))


class Signed(ImportanceMethod):
    """1, -1, 1, -1, ..."""

    def score(self, group: ChannelGroup, context: ScoringContext) -> Tensor:
        return (1.0 - 2.0 * (torch.arange(group.num_channels) % 2)).double()


def test_negative_scores_count_as_zero(monkeypatch: pytest.MonkeyPatch, statistics: ActivationStatistics) -> None:
    METHODS.names()
    for attribute in ("_values", "_summaries"):
        monkeypatch.setattr(METHODS, attribute, getattr(METHODS, attribute).copy())
    METHODS.register("signed")(Signed)
    hybrid = create_method("hybrid", {"first": "signed"})
    magnitudes = scores(create_method("magnitude"), statistics)
    for found, magnitude in zip(scores(hybrid, statistics), magnitudes, strict=True):
        assert (found[1::2] == 0).all()
        positive = Signed().score(ChannelGroup(name="", num_channels=len(found), num_blocks=1, members=()), None)  # type: ignore[arg-type]
        share = positive.clamp_min(0).mean()
        torch.testing.assert_close(found[::2], (magnitude / magnitude.mean() / share).sqrt()[::2])


@pytest.mark.parametrize(
    ("options", "needs"),
    [
        ({}, {"needs_activations"}),
        ({"first": "magnitude", "second": "random"}, set()),
        ({"first": "lamp", "second": "taylor"}, {"needs_gradients"}),
        (
            {"first": "coverage", "second": "hessian"},
            {"uses_coverage_metric", "needs_activations", "needs_squared_gradients"},
        ),
        ({"first": "random", "second": "adaptive"}, {"uses_coverage_metric", "needs_activations", "remeasures"}),
        ({"first": "reconstruction"}, {"needs_curves"}),
        ({"first_options": {"variant": "producer"}}, {"needs_activations", "needs_outputs"}),
    ],
)
def test_it_needs_what_its_parts_need(options: dict[str, Any], needs: set[str]) -> None:
    method = create_method("hybrid", options)
    names = [name for name in vars(ImportanceMethod) if name.startswith(("needs_", "uses_", "remeasures"))]
    assert {name for name in names if getattr(method, name) is True} - {"needs_statistics"} == needs
    assert method.needs_statistics == bool(needs - {"needs_curves"})
    assert not create_method("hybrid", {"first": "magnitude", "second": "random"}).needs_statistics


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"first": "hybrid"}, "first is 'hybrid'; allowed: adaptive, bn_scale, coverage"),
        ({"second": "magnitud"}, "second is 'magnitud'; allowed: .*magnitude"),
        ({"first": "magnitude"}, "first and second are both 'magnitude'; allowed: two different methods"),
        ({"first": "taylor", "second": "hessian"}, "first is 'taylor' and second is 'hessian', .*allowed: at most one"),
        ({"first_options": {"variant": "both"}}, "variant is 'both'; allowed: consumer, producer"),
        ({"first_options": 3}, "first_options is 3; allowed: a mapping"),
    ],
)
def test_wrong_parts_are_refused_in_one_sentence(options: dict[str, Any], message: str) -> None:
    with pytest.raises(StudyError, match=f"options of method 'hybrid': .*{message}"):
        create_method("hybrid", options)


def test_prune_measures_what_the_parts_read() -> None:
    model, data = build("residual"), batches()
    options: dict[str, Any] = {"method": "hybrid", "method_options": {"first": "coverage", "second": "hessian"}}
    options |= {"coverage_metric": "k_multisection", "ratio": 0.5}
    by_batches = api.prune(model, example(), iter(data), **options)
    stats = calibrate(model, data, sections=64, squared_gradients=True)
    by_stats = api.prune(model, example(), stats=stats, **options)
    assert by_batches.plan == by_stats.plan
    assert by_batches.plan.request["coverage_metric"] == "k_multisection"


def test_a_hybrid_of_adaptive_measures_anew_and_one_of_reconstruction_reads_curves() -> None:
    model = build("residual")
    for name in ("adaptive", "reconstruction"):
        options = {"first": name, "second": "magnitude"}
        result = api.prune(model, example(), batches(), method="hybrid", method_options=options, ratio=0.5, steps=2)
        assert result.plan.channel_ratio > 0.3


def test_a_default_coverage_metric_is_used() -> None:
    options = {"first": "coverage"}
    result = api.prune(build("plain"), example(), batches(), method="hybrid", method_options=options, ratio=0.5)
    assert result.plan.request["coverage_metric"] == "normalized_mean"


def test_statistics_without_sections_are_refused() -> None:
    stats = calibrate(build("plain"), batches())
    with pytest.raises(CalibrationError, match=r"metric 'entropy' .*sections="):
        api.prune(build("plain"), example(), stats=stats, method="coverage", coverage_metric="entropy", ratio=0.5)
