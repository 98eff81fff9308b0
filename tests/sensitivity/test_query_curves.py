"""Curves of query and key dimensions: what is lost once those that stay are the best ones, and what probes measure."""

from __future__ import annotations

import pytest
import torch
from packed_attention import packed_vit
from torch import Tensor

from cleanai_ray.config.sections import PruningSection
from cleanai_ray.config.study import Trial
from cleanai_ray.graph.graph import ChannelGraph
from cleanai_ray.pruning.measurements import Measurements
from cleanai_ray.pruning.pruner import Pruner
from cleanai_ray.repair import RepairOptions, repair
from cleanai_ray.repair.attention import balancing
from cleanai_ray.repair.moments import collect_moments
from cleanai_ray.repair.outputs import divergence, log_probabilities
from cleanai_ray.sensitivity import measure_curves, reading_features
from cleanai_ray.sensitivity.attention import balanced_errors
from cleanai_ray.sensitivity.elimination import Reading

GROUP = "blocks.0.attn.query"


def images() -> list[Tensor]:
    return [torch.randn(40, 3, 16, 16, generator=torch.Generator().manual_seed(7))]


def test_errors_by_hand() -> None:
    """One head: S_q = diag(4, 1, 1), S_k = diag(1, 9, 4). Products of dimensions: 4, 9 and 4 of 17 in all."""
    reading = Reading(
        weight=torch.diag(torch.tensor([1.0, 3.0, 2.0], dtype=torch.float64)).unsqueeze(2),
        covariance=torch.diag(torch.tensor([4.0, 1.0, 1.0], dtype=torch.float64)),
        units=torch.arange(3)[:, None],
    )
    assert balanced_errors(reading) == pytest.approx([4 / 17, 8 / 17])


def test_errors_of_several_heads_are_those_of_the_balanced_products() -> None:
    generator = torch.Generator().manual_seed(3)
    roots = torch.randn(4, 5, 5, generator=generator, dtype=torch.float64)
    queries, keys = [root @ root.T for root in roots[:2]], [root.T @ root for root in roots[2:]]
    reading = Reading(
        weight=torch.block_diag(roots[2], roots[3]).unsqueeze(2),
        covariance=torch.block_diag(*queries),
        units=torch.arange(5)[:, None] + 5 * torch.arange(2),
    )
    total = sum(float((q @ k).trace()) for q, k in zip(queries, keys, strict=True))
    for gone, error in enumerate(balanced_errors(reading), start=1):
        lost = 0.0
        for q, k in zip(queries, keys, strict=True):
            a, b = (rows[: 5 - gone] for rows in balancing(q, k))
            rest = torch.eye(5, dtype=torch.float64) - a.T @ b
            lost += float((rest.T @ q @ rest @ k).trace())
        assert error == pytest.approx(lost / total, rel=1e-6)


def test_the_probe_measures_what_surgery_and_repair_do() -> None:
    """With the second moments that a study measures once, which repair is given."""
    model, data = packed_vit(), images()
    graph = ChannelGraph(model, data[0][:2])
    features = reading_features(graph)
    assert {GROUP, GROUP.replace("query", "key")} <= features.keys()
    moments = collect_moments(graph.model, data, layers=list(features), features=features)
    curves = measure_curves(graph, moments, data)
    curve, reference = curves[GROUP], log_probabilities(model, data)
    count, measured = curve.probes[-1]
    others = tuple(group.name for group in graph.groups if group.name != GROUP)
    trial = Trial(method="reconstruction", ratio=(count - 0.5) / curve.num_channels)
    bounds, given = PruningSection(round_to=None), Measurements(curves=curves)
    pruner = Pruner(model, data[0][:2], trial, bounds=bounds, ignored_layers=others, measured=given)
    result = pruner.run()
    assert result.plan.removed == {GROUP: tuple(sorted(curve.order[:count]))}
    options = RepairOptions(compensation="closed_form", batch_norm="none")
    repaired = repair(model, result, data, options, moments=moments)
    assert divergence(reference, log_probabilities(repaired.model, data)) == pytest.approx(measured, rel=1e-3)
    assert measured < divergence(reference, log_probabilities(result.model, data))
