"""Without its check, pruning narrows more groups; what is measured for it must know them all."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from cleanai_ray.api import latency_profile, measure_sensitivity, prune
from cleanai_ray.graph.graph import ChannelGraph
from cleanai_ray.nn.complexity import measure_complexity
from cleanai_ray.profile.measure import ProfileRequest, measure_profile
from cleanai_ray.profile.table import profile_rows, read_profile
from cleanai_ray.pruning.granularity import AUTOMATIC

IMAGES = torch.randn(24, 2, 8, 8, generator=torch.Generator().manual_seed(1))


class Gated(nn.Module):
    """A mean over channels gates the first map, so that its cut is not exact, and is left out where it is checked."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Conv2d(2, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)
        self.fc = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x))
        x = x * torch.sigmoid(x.mean(1, keepdim=True))
        return self.fc(torch.relu(self.second(x)).mean((2, 3)))


def by_macs(dense: nn.Module, pruned: nn.Module) -> float:
    """A clock that takes its time for multiply-accumulates alone."""
    return measure_complexity(pruned, IMAGES).macs / measure_complexity(dense, IMAGES).macs


def groups(model: nn.Module, check: bool) -> set[str]:
    return {group.name for group in ChannelGraph(model, IMAGES, check=check).groups}


def test_a_latency_budget_is_met_with_all_groups() -> None:
    model = Gated().eval()
    assert (groups(model, True), groups(model, False)) == ({"second"}, {"first", "second"})
    options: dict[str, Any] = {"budget": {"latency": 0.5}, "latency": by_macs, "method": "magnitude"}
    result = prune(model, IMAGES[:1], check=False, **options)
    assert by_macs(model, result.model) <= 0.5
    assert {group.name for group in result.plan.groups} == {"first", "second"}
    profile = latency_profile(model, IMAGES[:1], latency=by_macs, check=False)
    assert prune(model, IMAGES[:1], check=False, profile=profile, **options).plan.removed == result.plan.removed


def test_sensitivity_is_measured_of_all_groups() -> None:
    model, batches = Gated().eval(), list(IMAGES.split(8))
    assert set(measure_sensitivity(model, IMAGES[:1], batches, check=False).groups) == {"first", "second"}
    options: dict[str, Any] = {"method": "reconstruction", "budget": {"macs": 0.5}, "check": False, "round_to": None}
    result = prune(model, IMAGES[:1], batches, **options)
    assert {group.name for group in result.plan.groups} == {"first", "second"}
    searched = prune(model, IMAGES[:1], batches, method_options={"search": 20}, **options)
    assert "search" in searched.plan.achieved


def test_a_profile_is_read_with_the_groups_that_it_was_measured_with() -> None:
    model = Gated().eval()

    def time_models(models: Any) -> Any:
        from cleanai_ray.evaluation.rounds import Timing

        macs = {name: float(measure_complexity(each, IMAGES).macs) for name, each in models.items()}
        return {name: Timing(p50=time, p90=time, p99=time, fast=time) for name, time in macs.items()}

    import polars

    dense_ms, timed = measure_profile(model, IMAGES[:1], ProfileRequest(), time_models, check=False)
    assert {name for found in timed for name in found.widths} == {"first", "second"}
    conditions = {"target": "torch", "num_runs": 1, "device_name": "cpu"}
    graph = ChannelGraph(model, IMAGES[:1], check=False)
    table = polars.DataFrame(profile_rows(graph, AUTOMATIC, dense_ms, timed, conditions))
    profile = read_profile(table, model, IMAGES[:1], AUTOMATIC, check=False)
    assert profile.predict({"first": 8, "second": 8}) < profile.dense_ms
