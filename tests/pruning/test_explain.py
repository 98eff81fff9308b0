"""The explanation of a plan as its user reads it: every row, every reason, every total."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from small_nets import NETS, batches, build, example, tiny_vit
from test_plan_document import PLANS

from cleanai_ray import api
from cleanai_ray.pruning.plan import GroupPlan, PruningPlan
from cleanai_ray.registry import MODELS

BOUNDS: dict[str, Any] = {
    "max_ratio": 0.75,
    "min_channels": 3,
    "round_to": None,
    "layer_ratios": {"head": 0.2},
    "ignored_layers": ["stem"],
}
REQUEST: dict[str, Any] = {
    "method": "coverage",
    "coverage_metric": "frequency",
    "ratio": None,
    "budget": {"macs": 0.5, "params": None},
    "mode": "global",
    "steps": 3,
    "seed": 7,
    "options": {},
    "bounds": BOUNDS,
}


def group(
    name: str, num_channels: int, num_removed: int, outputs: str = "", inputs: str = "", num_blocks: int = 1
) -> GroupPlan:
    return GroupPlan(
        name=name,
        num_channels=num_channels,
        removed=tuple(range(num_removed)),
        num_blocks=num_blocks,
        outputs=(name, *outputs.split()),
        inputs=tuple(inputs.split()),
    )


def plan(*groups: GroupPlan, **fields: Any) -> PruningPlan:
    return PruningPlan(model={"class": "Net", "example_inputs": [[1, 3, 8, 8]]}, groups=groups, **fields)


def rows(text: str) -> dict[str, list[str]]:
    """The cells of the table of groups after the name, by name: what two spaces or more keep apart."""
    table = text.split("\n\n")[1].splitlines()
    assert re.split(r" {2,}", table[0]) == ["group", "layers cut with it", "channels", "removed", "why"]
    assert "first layer" in table[-1]
    return {cells[0]: cells[1:] for cells in (re.split(r" {2,}", line) for line in table[1:-1])}


def why(one: GroupPlan, **changes: Any) -> str:
    bounds = {**BOUNDS, **changes.pop("bounds", {})}
    return rows(plan(one, request={**REQUEST, **changes, "bounds": bounds}).explain())[one.name][-1]


def test_the_text_of_a_small_plan() -> None:
    text = plan(
        group("conv1", 8, 4, "bn1", "conv2"),
        group("head", 10, 2, "", "fc"),
        group("wide", 100, 0, "bn9", "fc"),
        request=REQUEST,
        achieved={"params": 1500, "params_dense": 2000, "macs": 45_000, "macs_dense": 90_000},
        warnings=("the budget macs=0.5 was missed",),
    ).explain()
    assert text == (
        "Pruning plan of Net for inputs of 1 x 3 x 8 x 8: 2 of 3 groups of layers become narrower\n"
        "Asked:  coverage/frequency, global, budget macs=0.5, 3 steps, seed 7\n"
        "Bounds: max_ratio 0.75, min_channels 3, layer_ratios {head: 0.2}, ignored_layers stem\n"
        "\n"
        "group  layers cut with it    channels  removed  why\n"
        "conv1  bn1 -> conv2          8 ->   4   50.0 %  lowest scores of all groups\n"
        "head   -> fc                10 ->   8   20.0 %  layer_ratios head: 0.2\n"
        "wide   bn9 -> fc           100 -> 100    0.0 %  kept: more important than others\n"
        "A group is named after its first layer; layers after -> only read its channels.\n"
        "\n"
        "                    dense  pruned    kept\n"
        "prunable channels     118     112  94.9 %\n"  # 118 - 4 - 2
        "parameters          2,000   1,500  75.0 %\n"
        "MACs of one input  90,000  45,000  50.0 %\n"
        "\n"
        "Warnings:\n"
        "- the budget macs=0.5 was missed"
    )


@pytest.mark.parametrize(
    ("one", "changes", "reason"),
    [
        (group("a", 10, 5), {"mode": "local"}, "lowest scores in the group"),
        (group("a", 10, 5), {"mode": "isomorphic"}, "lowest scores of like groups"),
        (group("a", 10, 5), {"mode": "local", "by_price": True}, "cheapest for what they save"),
        # A quarter of 20 channels, 5, must stay; of 8 it would be 2, but min_channels asks for 3.
        (group("a", 20, 15), {}, "as far as max_ratio 0.75 allows"),
        (group("a", 20, 14), {}, "lowest scores of all groups"),
        (group("a", 8, 5), {}, "as far as min_channels 3 allows"),
        (group("a", 3, 0), {}, "kept: min_channels 3 allows no less"),
        # In two blocks, 6 of 20 stay: 5 cannot be halved.
        (group("a", 20, 14, num_blocks=2), {}, "as far as max_ratio 0.75 allows"),
        (group("a", 20, 8), {"bounds": {"round_to": 4}}, "lowest scores of all groups, in steps of 4"),
        (group("a", 6, 0), {"bounds": {"round_to": 8, "min_channels": 1}}, "kept: narrower than round_to 8"),
        # 8 is the least multiple of 4 that is not below 5.
        (group("a", 20, 12), {"bounds": {"round_to": 4}}, "as far as max_ratio 0.75 allows"),
        (group("head", 40, 30), {"bounds": {"layer_ratios": {"head": 0.8}}}, "layer_ratios head: 0.8, as far as"),
        (group("b.c", 9, 1), {"bounds": {"layer_ratios": {"b": 0.5, "b.c": 0.1}}}, "layer_ratios b.c: 0.1"),
        (group("bc", 9, 4), {"bounds": {"layer_ratios": {"b": 0.5}}}, "lowest scores of all groups"),
    ],
)
def test_each_reason(one: GroupPlan, changes: dict[str, Any], reason: str) -> None:
    assert why(one, **changes).startswith(reason)


def test_many_layers_are_shortened_and_counted() -> None:
    names = [f"stage.block{number}.conv" for number in range(20)]
    one = group("stage.first", 16, 8, " ".join(names[:9]), " ".join(names[9:]))
    layers = rows(plan(one, request=REQUEST).explain())["stage.first"][0]
    shown, _, number = layers.partition(", ... (+")
    assert shown.split(", ") == names[: len(shown.split(", "))]
    assert int(number.rstrip(")")) == 20 - len(shown.split(", "))
    # The arrow stays where the first readers still fit.
    short = group("s", 16, 8, "a", " ".join(names))
    assert rows(plan(short, request=REQUEST).explain())["s"][0].startswith("a -> stage.block0.conv, ")
    assert rows(plan(group("alone", 4, 1)).explain())["alone"][0] == "none"


def test_totals_of_file_and_latency() -> None:
    latency = {"ratio": 0.58, "latency_ms_p50": 5.8, "latency_ms_p50_dense": 10.0, "batch_size": 4, "num_threads": 1}
    achieved = {"size_bytes": 2_500_000, "size_bytes_dense": 10_000_000, "latency": {**latency, "device": "cpu"}}
    lines = plan(group("a", 4, 1), achieved=achieved).explain().split("\n\n")[-1].splitlines()
    cells = [re.split(r" {2,}", line.strip()) for line in lines[1:]]
    assert cells == [
        ["prunable channels", "4", "3", "75.0 %"],
        ["file", "10.000 MB", "2.500 MB", "25.0 %"],
        ["measured latency", "10.00 ms", "5.80 ms", "58.0 %", "batch 4, 1 thread, cpu"],
    ]


def test_long_warnings_are_wrapped_below_themselves() -> None:
    warning = "layer 'a' " + "was cut as far as it goes " * 20
    text = plan(group("a", 4, 1), warnings=(warning, "and more")).explain()
    lines = text.partition("Warnings:\n")[2].splitlines()
    assert all(len(line) <= 118 for line in lines)
    assert [line[:2] for line in lines] == ["- ", *["  "] * (len(lines) - 2), "- "]
    assert " ".join(line[2:] for line in lines[:-1]).split() == warning.split()


@given(PLANS)
def test_every_plan_can_be_explained(given: PruningPlan) -> None:
    text = PruningPlan(model=given.model, groups=given.groups, warnings=given.warnings).explain()
    assert text.count(" -> ") >= len(given.groups)


@pytest.mark.parametrize("net", [*NETS, "vit", "resnet20"])
def test_a_plan_from_a_file_explains_itself_in_aligned_columns(net: str) -> None:
    if net == "vit":
        model, images = tiny_vit(), example(1, size=16, channels=3)
    elif net == "resnet20":
        model = MODELS.get("resnet20")().build(num_classes=10, input_shape=(1, 8, 8)).eval()
        images = example(1, size=8, channels=1)
    else:
        model, images = build(net), example(1)
    result = api.prune(model, images, method="magnitude", mode="global", ratio=0.4, round_to=None)
    text = PruningPlan.from_json(result.plan.to_json()).explain()
    assert text == result.plan.explain()
    assert max(len(line) for line in text.splitlines()) <= 120
    table = text.split("\n\n")[1].splitlines()[:-1]
    starts = [table[0].index(heading) for heading in ("layers cut with it", "channels", "why")]
    for line, one in zip(table[1:], result.plan.groups, strict=True):
        assert all(line[start - 2 : start] == "  " for start in starts)
        assert line.startswith(one.name)
        left = one.num_channels - len(one.removed)
        assert re.search(rf" {one.num_channels} -> +{left} ", line)
        assert f" {100 * len(one.removed) / one.num_channels:.1f} %" in line


def test_a_plan_that_names_no_layers_says_so() -> None:
    one = GroupPlan(name="conv1", num_channels=8, removed=(1,))
    assert rows(plan(one, request=REQUEST).explain())["conv1"] == [
        "not recorded",
        "8 -> 7",
        "12.5 %",
        "lowest scores of all groups",
    ]


def test_ignored_layers_of_every_origin_are_named() -> None:
    text = api.prune(
        build("residual"), example(), batches(), method="wanda", ratio=0.5, ignored_layers=["head"]
    ).plan.explain()
    assert "ignored_layers head" in text
    assert "Asked:  wanda, local, ratio 0.5, 1 step, seed 0" in text


def test_a_budget_that_prices_meet_says_so() -> None:
    """Reconstruction compares groups by the price of a channel per saving, whatever the mode."""
    options: dict[str, Any] = {"method": "reconstruction", "mode": "local", "round_to": None}
    by_budget = api.prune(build("residual"), example(), batches(), budget={"macs": 0.8}, **options).plan.explain()
    by_ratio = api.prune(build("residual"), example(), batches(), ratio=0.3, **options).plan.explain()
    assert any(cells[-1] == "cheapest for what they save" for cells in rows(by_budget).values())
    assert not any(cells[-1] == "cheapest for what they save" for cells in rows(by_ratio).values())
