"""The number and the choice of removed channels: against torch-pruning, by hand, and as properties of random groups."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch_pruning as tp
from hypothesis import given
from hypothesis import strategies as st
from small_nets import batches, build, example
from torch import Tensor, nn

from cleanai_ray import api
from cleanai_ray.config.sections import PruningSection
from cleanai_ray.config.study import Trial
from cleanai_ray.errors import PruningError
from cleanai_ray.graph.graph import ChannelGroup, Member
from cleanai_ray.pruning.granularity import Granularity
from cleanai_ray.pruning.pruner import Pruner
from cleanai_ray.pruning.selection import SelectionRequest, Selector
from cleanai_ray.registry import MODELS


def group(name: str, channels: int, blocks: int = 1, *layers: str, kind: str = "Conv2d") -> ChannelGroup:
    members = tuple(
        Member(layer=layer, side="out", type=kind, channels=np.arange(channels), roots=np.arange(channels))
        for layer in (layers or (name,))
    )
    return ChannelGroup(name=name, num_channels=channels, num_blocks=blocks, members=members)


def select(
    groups: list[ChannelGroup], scores: dict[str, list[float]], dense: dict[str, int] | None = None, **request: object
) -> dict[str, list[int]]:
    widths = dense or {item.name: item.num_channels for item in groups}
    tensors = {name: torch.tensor(values, dtype=torch.float64) for name, values in scores.items()}
    if "round_to" in request:
        request["granularity"] = request["round_to"] and Granularity(multiple=request["round_to"])  # type: ignore[arg-type]
        del request["round_to"]
    found = Selector(groups, tensors, widths, SelectionRequest(**request)).select()  # type: ignore[arg-type]
    return {name: channels.tolist() for name, channels in found.items()}


def resnet20(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return MODELS.get("resnet20")().build(num_classes=10, input_shape=(1, 16, 16)).eval()


def torch_prunings(model: nn.Module, images: Tensor, ratio: float, **options: object) -> nn.Module:
    pruner = tp.pruner.BasePruner(
        model,
        images,
        importance=tp.importance.GroupMagnitudeImportance(p=2),
        pruning_ratio=ratio,
        ignored_layers=[model.fc],
        in_channel_groups={},
        out_channel_groups={},
        num_heads={},
        **options,
    )
    pruner.step()
    return model


@pytest.mark.parametrize("ratio", [0.13, 0.3, 0.5, 0.72])
def test_magnitude_local_is_torch_prunings_own_pruner(ratio: float) -> None:
    """The same widths and the same channels: every remaining weight is equal."""
    images = example(1, size=16, channels=1)
    theirs = torch_prunings(resnet20(), images, ratio).state_dict()
    ours = api.prune(
        resnet20(), images, method="magnitude", mode="local", ratio=ratio, round_to=None
    ).model.state_dict()
    assert ours["layer3.2.conv2.weight"].shape[0] == int(64 * (1 - ratio))
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        assert torch.equal(value, theirs[name]), name


@pytest.mark.parametrize("ratio", [0.1, 0.2])
def test_magnitude_global_is_torch_prunings_own_pruner(ratio: float) -> None:
    images = example(1, size=16, channels=1)
    theirs = torch_prunings(resnet20(), images, ratio, global_pruning=True).state_dict()
    result = api.prune(
        resnet20(), images, method="magnitude", mode="global", ratio=ratio, max_ratio=0.95, round_to=None
    )
    ours = result.model.state_dict()
    total = sum(item.num_channels for item in result.plan.groups)
    assert sum(len(item.removed) for item in result.plan.groups) == total - int(total * (1 - ratio))
    assert {name: value.shape for name, value in ours.items()} == {name: value.shape for name, value in theirs.items()}
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())


def test_a_grouped_convolution_is_pruned_as_torch_pruning_does() -> None:
    theirs = torch_prunings(build("grouped"), example(1), 0.5).state_dict()
    ours = api.prune(build("grouped"), example(1), method="magnitude", ratio=0.5).model.state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())


@pytest.mark.parametrize("ratio", [0.01, 0.25, 0.5, 0.8, 0.9])
def test_a_local_ratio_keeps_the_integer_part_of_every_group(ratio: float) -> None:
    model = build("concat")
    result = api.prune(model, example(), batches(), method="coverage", ratio=ratio) if ratio > 0.05 else None
    if result is None:
        # int(C x 0.99) is C - 1 for every C up to 100: even a small ratio takes one channel.
        result = api.prune(model, example(), batches(), method="coverage", ratio=ratio)
    for item in result.plan.groups:
        expected = max(1, math.ceil(item.num_channels * 0.1 - 1e-9), int(item.num_channels * (1 - ratio) + 1e-9))
        assert item.num_channels - len(item.removed) == expected


def test_the_lowest_scores_go_from_each_group() -> None:
    groups = [group("a", 4), group("b", 5)]
    scores = {"a": [3.0, 1.0, 4.0, 2.0], "b": [5.0, 4.0, 3.0, 2.0, 1.0]}
    assert select(groups, scores, ratio=0.5) == {"a": [1, 3], "b": [2, 3, 4]}


def test_global_mode_ranks_all_channels_together() -> None:
    groups = [group("a", 4), group("b", 4)]
    scores = {"a": [0.1, 0.2, 0.3, 0.9], "b": [0.4, 5.0, 6.0, 7.0]}
    assert select(groups, scores, mode="global", ratio=0.5) == {"a": [0, 1, 2], "b": [0]}


def test_global_mode_stops_at_the_least_width_and_takes_the_rest_elsewhere() -> None:
    groups = [group("a", 4), group("b", 4)]
    scores = {"a": [0.1, 0.2, 0.3, 0.35], "b": [0.4, 5.0, 6.0, 7.0]}
    assert select(groups, scores, mode="global", ratio=0.5, max_ratio=0.5) == {"a": [0, 1], "b": [0, 1]}
    assert select(groups, scores, mode="global", ratio=0.5, min_channels=3) == {"a": [0], "b": [0]}


def test_ties_are_broken_by_position() -> None:
    groups = [group("a", 4), group("b", 4)]
    scores = {"a": [1.0] * 4, "b": [1.0] * 4}
    assert select(groups, scores, mode="global", ratio=0.25) == {"a": [0, 1]}
    assert select(groups, scores, ratio=0.5) == {"a": [0, 1], "b": [0, 1]}


def test_isomorphic_mode_ranks_groups_of_the_same_structure_together() -> None:
    groups = [group("a", 4), group("b", 4), group("c", 4, 1, "c", kind="Linear")]
    scores = {"a": [1.0, 2.0, 3.0, 4.0], "b": [11.0, 12.0, 13.0, 14.0], "c": [100.0, 400.0, 300.0, 200.0]}
    # a and b are alike, and together lose 4 of 8; c is ranked by itself, and loses 2 of 4.
    assert select(groups, scores, mode="isomorphic", ratio=0.5, max_ratio=0.75) == {
        "a": [0, 1, 2],
        "b": [0],
        "c": [0, 3],
    }
    assert select(groups, scores, mode="global", ratio=0.5, max_ratio=0.75) == {"a": [0, 1, 2], "b": [0, 1, 2]}


def test_blocks_lose_the_same_positions_by_their_average_score() -> None:
    groups = [group("a", 6, 2)]
    # Units 0, 1, 2 average 3, 2 and 4.
    assert select(groups, {"a": [1.0, 2.0, 7.0, 5.0, 2.0, 1.0]}, ratio=0.34) == {"a": [0, 1, 3, 4]}
    assert select(groups, {"a": [1.0, 2.0, 7.0, 5.0, 2.0, 1.0]}, ratio=0.33) == {"a": [1, 4]}


def test_layer_ratios_go_by_the_longest_prefix_of_whole_names() -> None:
    groups = [
        group(name, 10) for name in ("stage1.0.conv1", "stage1.0.conv2", "stage1.1.conv1", "stage10.conv", "stem")
    ]
    scores = {item.name: [float(i) for i in range(10)] for item in groups}
    found = select(groups, scores, ratio=0.5, layer_ratios={"stage1": 0.2, "stage1.0": 0.3, "stage1.0.conv2": 0.7})
    assert {name: len(channels) for name, channels in found.items()} == {
        "stage1.0.conv1": 3,
        "stage1.0.conv2": 7,
        "stage1.1.conv1": 2,
        "stage10.conv": 5,
        "stem": 5,
    }


def test_layer_ratios_apply_to_any_producer_of_a_group_the_least_one_counting() -> None:
    groups = [group("conv2", 10, 1, "conv2", "stem")]
    scores = {"conv2": [float(i) for i in range(10)]}
    assert len(select(groups, scores, ratio=0.5, layer_ratios={"stem": 0.1})["conv2"]) == 1
    assert len(select(groups, scores, ratio=0.5, layer_ratios={"stem": 0.3, "conv2": 0.2})["conv2"]) == 2


def test_layer_ratios_hold_in_global_mode_and_leave_the_others_their_own() -> None:
    groups = [group("a", 10), group("b", 10), group("c", 10)]
    scores = {
        "a": [float(i) for i in range(10)],
        "b": [100.0 + i for i in range(10)],
        "c": [200.0 + i for i in range(10)],
    }
    found = select(groups, scores, mode="global", ratio=0.3, layer_ratios={"a": 0.1})
    assert {name: len(channels) for name, channels in found.items()} == {"a": 1, "b": 6}


def test_layer_ratios_and_ignored_layers_that_name_nothing_are_refused() -> None:
    model = build("plain")
    with pytest.raises(PruningError, match=r"layer_ratios names 'conv7', .* prunable layers: conv2, conv1"):
        api.prune(model, example(), method="magnitude", ratio=0.5, layer_ratios={"conv7": 0.5})
    with pytest.raises(PruningError, match="layer_ratios names 'con'"):
        api.prune(model, example(), method="magnitude", ratio=0.5, layer_ratios={"con": 0.5})
    with pytest.raises(PruningError, match="layer_ratios names 'fc'"):
        api.prune(model, example(), method="magnitude", ratio=0.5, layer_ratios={"fc": 0.5})
    with pytest.raises(PruningError, match="ignored_layers names 'conv7', which is not a module"):
        api.prune(model, example(), method="magnitude", ratio=0.5, ignored_layers=["conv7"])


def test_ignored_layers_keep_their_width_with_all_below_them() -> None:
    images = example(1, size=16, channels=1)
    result = api.prune(resnet20(), images, method="magnitude", ratio=0.5, ignored_layers=["layer2.1", "conv1"])
    assert result.model.layer2[1].conv1.out_channels == 32
    assert result.model.layer2[0].conv2.out_channels == 32
    assert result.model.layer2[0].conv1.out_channels == 16
    assert result.model.conv1.out_channels == 16
    assert result.model.layer1[0].conv2.out_channels == 16
    assert result.model.layer3[2].conv2.out_channels == 32


def test_nothing_to_remove_is_an_error() -> None:
    with pytest.raises(
        PruningError, match=r"nothing would be removed: ratio 0\.3 with round_to None and min_channels 8"
    ):
        api.prune(build("plain"), example(), method="magnitude", ratio=0.3, min_channels=8, round_to=None)
    with pytest.raises(PruningError, match="no prunable group"):
        api.prune(build("plain"), example(), method="magnitude", ratio=0.3, ignored_layers=["conv1", "conv2"])


def test_collapsed_layers_are_warned_of_by_name() -> None:
    model = build("plain")
    with torch.no_grad():
        for module in (model.conv1, model.bn1):
            module.weight.mul_(1e-3)
    stats_free = {"method": "magnitude", "mode": "global", "ratio": 0.4}
    result = api.prune(model, example(), **stats_free)
    by_width = {item.name: item.num_channels - len(item.removed) for item in result.plan.groups}
    for warning in result.plan.warnings:
        assert "collapsed to" in warning
    collapsed = [name for name, width in by_width.items() if width == 1]
    assert [name for name in by_width if any(f"'{name}'" in warning for warning in result.plan.warnings)] == collapsed


@st.composite
def selections(draw: st.DrawFn) -> tuple[list[ChannelGroup], dict[str, list[float]], dict[str, Any]]:
    groups = []
    scores: dict[str, list[float]] = {}
    for index in range(draw(st.integers(1, 4))):
        blocks = draw(st.sampled_from([1, 1, 2, 4]))
        width = blocks * draw(st.integers(1, 24))
        groups.append(group(f"g{index}", width, blocks))
        # Distinct scores, so that "the lowest" means one set only.
        ranks = draw(st.permutations(range(width)))
        scores[f"g{index}"] = [1.0 + rank + index * 0.1 for rank in ranks]
    request: dict[str, Any] = {
        "mode": draw(st.sampled_from(["local", "global", "isomorphic"])),
        "ratio": draw(st.floats(0.01, 0.95)),
        "max_ratio": draw(st.floats(0.05, 0.95)),
        "min_channels": draw(st.integers(1, 12)),
        "round_to": draw(st.sampled_from([None, 2, 3, 4, 8])),
    }
    return groups, scores, request


@given(selections())
def test_bounds_hold_and_the_lowest_go_first(
    drawn: tuple[list[ChannelGroup], dict[str, list[float]], dict[str, Any]],
) -> None:
    groups, scores, request = drawn
    removed = select(groups, scores, **request)
    round_to, max_ratio, least = request["round_to"], request["max_ratio"], request["min_channels"]
    for item in groups:
        gone = removed.get(item.name, [])
        kept = item.num_channels - len(gone)
        if not gone:
            continue
        assert kept >= min(least, item.num_channels)
        assert kept >= item.num_channels * (1 - max_ratio) - 1e-6
        assert kept >= 1
        assert gone == sorted(set(gone))
        if round_to:
            assert kept % round_to == 0
        per_block = np.array(gone).reshape(item.num_blocks, -1)
        units = per_block - np.arange(item.num_blocks)[:, None] * item.num_units
        assert (units == units[0]).all(), "every block loses the same positions"
        average = np.array(scores[item.name]).reshape(item.num_blocks, -1).mean(axis=0)
        stay = np.setdiff1d(np.arange(item.num_units), units[0])
        assert average[units[0]].max() <= average[stay].min()


@given(selections())
def test_the_number_that_goes_is_what_the_ratio_says_where_no_bound_is_in_the_way(
    drawn: tuple[list[ChannelGroup], dict[str, list[float]], dict[str, Any]],
) -> None:
    groups, scores, request = drawn
    ratio = request["ratio"]
    removed = select(groups, scores, mode="local", ratio=ratio, max_ratio=0.999)
    for item in groups:
        kept_units = (item.num_channels - len(removed.get(item.name, []))) // item.num_blocks
        assert kept_units == max(
            1, int(item.num_units * (1 - ratio) + 1e-9), math.ceil(item.num_channels * 0.001 / item.num_blocks)
        )
    total = sum(item.num_channels for item in groups)
    everywhere = select(groups, scores, mode="global", ratio=ratio, max_ratio=0.999)
    gone = sum(len(channels) for channels in everywhere.values())
    goal = min(total - int(total * (1 - ratio) + 1e-9), total - sum(item.num_blocks for item in groups))
    assert goal <= gone < goal + max(item.num_blocks for item in groups)


@pytest.mark.parametrize("mode", ["local", "global"])
@pytest.mark.parametrize("round_to", [4, 8])
def test_widths_of_a_real_model_are_multiples(round_to: int, mode: str) -> None:
    images = example(1, size=16, channels=1)
    result = api.prune(resnet20(), images, method="magnitude", mode=mode, ratio=0.4, round_to=round_to)
    for item in result.plan.groups:
        assert (item.num_channels - len(item.removed)) % round_to == 0
    assert 0.2 < result.plan.channel_ratio < 0.6


def test_auto_are_multiples_of_eight_or_of_four_in_a_narrow_group_and_the_plan_says_so() -> None:
    """Groups of 16, 32 and 64 channels have four steps at least: 4, 8 and 8."""
    plan = api.prune(
        resnet20(), torch.randn(1, 1, 28, 28), method="magnitude", budget={"macs": 0.5}, round_to="auto"
    ).plan
    assert (plan.request["bounds"]["round_to"], plan.request["bounds"]["least_steps"]) == (8, 4)
    assert "round_to 8 (less where a group is narrow)" in plan.explain()
    widths = {(group.num_channels, group.num_channels - len(group.removed)) for group in plan.groups}
    assert all(kept % {16: 4, 32: 8, 64: 8}[width] == 0 for width, kept in widths)
    share = plan.achieved["macs"] / plan.achieved["macs_dense"]
    assert share <= 0.5
    assert share >= 0.48 or any("macs" in warning for warning in plan.warnings)


@pytest.mark.parametrize("ratio", [0.03, 0.1, 0.3, 0.6, 0.85])
@pytest.mark.parametrize("mode", ["local", "global"])
def test_auto_leaves_no_ratio_out_of_reach(ratio: float, mode: str) -> None:
    """3 % of 64 channels are two, which multiples of 8 cannot give, nor of 4: then they are of 2."""
    plan = api.prune(
        resnet20(), torch.randn(1, 1, 8, 8), method="magnitude", ratio=ratio, mode=mode, round_to="auto"
    ).plan
    assert plan.channel_ratio > 0
    assert plan.channel_ratio == pytest.approx(ratio, abs=0.07)


@pytest.mark.parametrize(("quantization", "multiple"), [("none", 8), ("bf16", 8), ("int8", 16)])
def test_auto_are_multiples_of_sixteen_where_the_model_will_be_int8(quantization: str, multiple: int) -> None:
    trial = Trial.model_validate({"method": "magnitude", "budget": {"macs": 0.5}, "quantization": quantization})
    bounds = PruningSection.model_validate({"round_to": "auto"})
    plan = Pruner(resnet20(), torch.randn(1, 1, 28, 28), trial, bounds=bounds).run().plan
    assert plan.request["bounds"]["round_to"] == multiple
    widths = {group.num_channels - len(group.removed) for group in plan.groups if group.num_channels == 64}
    assert all(width % multiple == 0 for width in widths)
    assert plan.achieved["macs"] <= 0.5 * plan.achieved["macs_dense"]


def test_a_group_narrower_than_the_multiple_is_left_alone() -> None:
    assert select(
        [group("a", 6), group("b", 16)], {"a": list(range(6)), "b": list(range(16))}, ratio=0.5, round_to=8
    ) == {"b": list(range(8))}


@pytest.mark.parametrize(
    ("ratio", "kept"), [(0.19, 16), (0.25, 16), (0.3, 16), (0.31, 12), (0.45, 12), (0.55, 8), (0.79, 4), (0.9, 4)]
)
def test_the_width_goes_to_the_nearest_multiple(ratio: float, kept: int) -> None:
    """Of 20 channels 16.2, 15, 14, 13.8, 11, 9, 4.2 and 2 are to stay: the integer part, rounded to 4 x n."""
    found = select([group("a", 20)], {"a": [float(i) for i in range(20)]}, ratio=ratio, round_to=4)
    assert 20 - len(found["a"]) == kept


def test_rounding_does_not_go_below_the_bounds() -> None:
    """9 of 20 are to stay; at least 9 must, so that the nearest multiple of 8, which is 8, is too few."""
    groups, scores = [group("a", 20)], {"a": [float(i) for i in range(20)]}
    assert 20 - len(select(groups, scores, ratio=0.55, round_to=8, min_channels=9)["a"]) == 16
    assert 20 - len(select(groups, scores, ratio=0.55, round_to=8)["a"]) == 8


@pytest.mark.parametrize("mode", ["local", "global", "isomorphic"])
def test_every_mode_prunes_a_real_model(mode: str) -> None:
    images = example(1, size=16, channels=1)
    plan = api.prune(resnet20(), images, method="magnitude", mode=mode, ratio=0.5).plan
    assert plan.channel_ratio == pytest.approx(0.5, abs=0.02)
