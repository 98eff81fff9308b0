"""Measuring a profile, with a clock that counts multiply-accumulates in whole eights, and with a real one."""

from __future__ import annotations

import math
from collections.abc import Mapping

import polars as pl
import pytest
import torch
from torch import Tensor, nn

from cleanai_ray.config.evaluation import LatencySection
from cleanai_ray.config.target import TargetSection
from cleanai_ray.evaluation.rounds import Timing
from cleanai_ray.graph.graph import ChannelGraph
from cleanai_ray.nn.complexity import measure_complexity
from cleanai_ray.nn.notices import collected_notices
from cleanai_ray.profile.clock import TargetClock
from cleanai_ray.profile.fitted import LatencyProfile
from cleanai_ray.profile.measure import ProfileRequest, measure_profile
from cleanai_ray.profile.table import fit_profile, profile_rows, read_profile
from cleanai_ray.pruning.granularity import Granularity
from cleanai_ray.storage import schemas
from tests.small_nets import Depthwise, Residual

EXAMPLE = torch.randn(1, 2, 8, 8)
TWOS = Granularity(multiple=2)
REQUEST = ProfileRequest(granularity=TWOS, points=8)


class Clock:
    """Takes a microsecond for a thousand multiply-accumulates, on a machine whose pace is another every time."""

    def __init__(self) -> None:
        self.pace, self.timed = 1.0, 0

    def __call__(self, models: Mapping[str, nn.Module]) -> dict[str, Timing]:
        self.pace *= 1.07
        self.timed += len(models)
        times = {name: self.pace * self.milliseconds(model) for name, model in models.items()}
        return {name: Timing(p50=time, p90=time, p99=time, fast=time) for name, time in times.items()}

    @staticmethod
    def milliseconds(model: nn.Module) -> float:
        return measure_complexity(model, EXAMPLE).macs / 1e6


@pytest.mark.parametrize("model", [Residual(), Depthwise()], ids=["residual", "depthwise"])
def test_a_machine_that_takes_its_time_for_macs_alone_is_predicted_from_its_profile(model: nn.Module) -> None:
    clock = Clock()
    dense_ms, timed = measure_profile(model, EXAMPLE, REQUEST, clock)
    profile = fit_profile(ChannelGraph(model, EXAMPLE), TWOS, dense_ms, timed)
    assert {found.kind for found in timed} == {"group", "repeat", "uniform", "check"}
    assert profile.noise == 0
    for found in timed:
        assert profile.predict_widths(found.widths) / dense_ms == pytest.approx(found.ratio, rel=0.05)
    dense = Clock.milliseconds(model)
    for found in timed:  # the pace of the machine is not in the ratios
        graph = ChannelGraph(model, EXAMPLE)
        kept = {group.name: found.widths.get(group.name, group.num_channels) for group in graph.groups}
        graph.remove({group.name: range(kept[group.name], group.num_channels) for group in graph.groups})
        assert found.ratio == pytest.approx(Clock.milliseconds(graph.model) / dense)


def test_the_model_is_left_as_it_is_and_every_group_is_timed_at_its_grid() -> None:
    model = Residual().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    _, timed = measure_profile(model, EXAMPLE, REQUEST, Clock(), ignored_layers=["head"])
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    alone = [dict(found.widths) for found in timed if found.kind == "group"]
    assert sorted(next(iter(widths.items())) for widths in alone) == [
        *(("conv1", width) for width in (2, 4, 6)),
        *(("conv2", width) for width in (2, 4)),
    ]


def test_times_are_over_the_mean_of_two_dense_ones_whose_difference_is_the_noise() -> None:
    """The second dense time is 2 % longer: ratios are over 1.01 of the first, and the noise is ln 1.02 / sqrt 2."""

    def time_models(models: Mapping[str, nn.Module]) -> dict[str, Timing]:
        times = Clock()(models)
        second = times["dense again"].fast * 1.02
        return {**times, "dense again": Timing(p50=second, p90=second, p99=second, fast=second)}

    model = Residual()
    dense_ms, noisy = measure_profile(model, EXAMPLE, REQUEST, time_models)
    _, exact = measure_profile(model, EXAMPLE, REQUEST, Clock())
    repeats = [found for found in noisy if found.kind == "repeat"]
    graph = ChannelGraph(model, EXAMPLE)
    assert [dict(found.widths) for found in repeats] == [{group.name: group.num_channels} for group in graph.groups]
    assert [found.ratio for found in repeats] == pytest.approx([1.02] * len(repeats))
    for found, other in zip(noisy, exact, strict=True):
        if found.kind != "repeat":
            assert found.ratio == pytest.approx(other.ratio / 1.01)
    profile = fit_profile(graph, TWOS, dense_ms, noisy)
    assert profile.noise == pytest.approx(math.log(1.02) / math.sqrt(2))


def test_a_table_gives_back_the_profile_that_it_was_made_of() -> None:
    model = Residual()
    dense_ms, timed = measure_profile(model, EXAMPLE, REQUEST, Clock())
    graph = ChannelGraph(model, EXAMPLE)
    conditions = {"target": "t", "num_runs": 5, "device_name": "d"}
    rows = profile_rows(graph, TWOS, dense_ms, timed, conditions)
    table = pl.DataFrame(pl.from_arrow(schemas.to_table(rows, schemas.PROFILE)))
    assert set(rows[0]) == set(schemas.PROFILE.names)
    read = read_profile(table, Residual(), EXAMPLE, TWOS)
    first = fit_profile(graph, TWOS, dense_ms, timed)
    assert isinstance(read, LatencyProfile)
    for found in timed:
        assert read.predict_widths(found.widths) == pytest.approx(first.predict_widths(found.widths))
    checks = table.filter(pl.col("kind") == "check")
    assert checks["fitted_milliseconds"].null_count() == checks.height
    for row in table.iter_rows(named=True):
        assert row["milliseconds"] == pytest.approx(row["ratio"] * row["milliseconds_dense"])


def test_a_profile_is_measured_in_a_real_target() -> None:
    section = LatencySection.model_validate({"warmup": 1, "runs": 5})
    target = TargetSection(backend="torch", batch_size=2)
    clock = TargetClock(target, section, EXAMPLE)
    request = ProfileRequest(granularity=Granularity(multiple=4), points=2)
    dense_ms, timed = measure_profile(Residual(), EXAMPLE, request, clock.time_models)
    assert dense_ms > 0
    assert all(found.ratio > 0 for found in timed)


class NotAtFour(nn.Module):
    """Its first layer cannot have four channels, which no trial of the group tells."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.fc = nn.Conv2d(2, 8, 1), nn.Conv2d(8, 8, 1), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).relu()
        if x.shape[1] == 4:
            raise ValueError("four channels")
        return self.fc(self.second(x).relu().mean((2, 3)))


def test_a_width_that_fails_is_left_out_with_a_notice_and_the_profile_goes_on() -> None:
    model = NotAtFour().eval()
    with collected_notices() as told:
        dense_ms, timed = measure_profile(model, EXAMPLE, REQUEST, Clock())
    alone = [next(iter(found.widths.items())) for found in timed if found.kind == "group"]
    assert sorted(alone) == [("first", 6), ("second", 2), ("second", 4), ("second", 6)]
    assert told[0].startswith("latency profile: layer 'first' is not timed at 4 channels or fewer: ")
    together = [dict(found.widths) for found in timed if found.kind == "uniform"]
    # Three quarters, a half and a quarter of all: of the half, the group that fails keeps its width.
    assert [widths.get("first") for widths in together] == [6, None, 2]
    assert all("second" in widths for widths in together)
    profile = fit_profile(ChannelGraph(model, EXAMPLE), TWOS, dense_ms, timed)
    assert profile.predict_widths({"first": 4, "second": 4}) > 0
