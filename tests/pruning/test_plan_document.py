"""The plan as a document: it loses nothing, and is refused if it was changed."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_nets import NETS, batches, build, example, tiny_vit

from cleanai_ray import api
from cleanai_ray.config.digests import digest
from cleanai_ray.errors import ArtifactError, PruningError
from cleanai_ray.graph.block import Block
from cleanai_ray.pruning.plan import BlockPlan, GroupPlan, PruningPlan

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**40), 2**40)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


@st.composite
def group_plans(draw: st.DrawFn) -> GroupPlan:
    width = draw(st.integers(1, 40))
    removed = draw(st.sets(st.integers(0, width - 1)))
    names = st.lists(st.text(min_size=1), max_size=3).map(tuple)
    return GroupPlan(
        name=draw(st.text(min_size=1)),
        num_channels=width,
        num_blocks=draw(st.integers(1, 4)),
        removed=tuple(sorted(removed)),
        outputs=draw(names),
        inputs=draw(names),
    )


@st.composite
def block_plans(draw: st.DrawFn) -> BlockPlan:
    shape = draw(st.sampled_from([(3,), (2, 1, 1)]))
    numbers = st.floats(allow_nan=False, allow_infinity=False, width=32)
    names = st.lists(st.text(min_size=1), max_size=3).map(tuple)
    block = Block(
        name=draw(st.text(min_size=1)),
        form=draw(st.sampled_from(["block", "branch"])),
        end=draw(st.none() | st.text()),
        shape=shape,
        skipped=draw(names),
        after=draw(names),
        num_outputs=draw(st.integers(0, 3)),
        layers=draw(names),
        fold=draw(st.none() | st.text()),
    )
    mean = draw(st.lists(numbers, min_size=shape[0], max_size=shape[0]))
    return BlockPlan(block=block, mean=tuple(mean), macs=draw(st.integers(0, 2**50)))


PLANS = st.builds(
    PruningPlan,
    model=st.dictionaries(st.text(), JSON, max_size=4),
    groups=st.lists(group_plans(), max_size=4).map(tuple),
    request=st.dictionaries(st.text(), JSON, max_size=4),
    achieved=st.dictionaries(st.text(), JSON, max_size=4),
    warnings=st.lists(st.text(), max_size=3).map(tuple),
    blocks=st.lists(block_plans(), max_size=2).map(tuple),
)


@given(PLANS)
def test_json_restores_the_plan(plan: PruningPlan) -> None:
    text = plan.to_json()
    restored = PruningPlan.from_json(text)
    assert restored == plan
    assert restored.to_json() == text


def test_a_plan_of_the_first_format_is_read() -> None:
    """It said nothing of the layers that a group cuts; what it did say is kept, and still applies."""
    model, plan = build("residual"), made()
    document = json.loads(plan.to_json())
    document.pop("digest")
    document["format"] = "cleanai-plan/1"
    for group in document["groups"]:
        assert set(group) - {"outputs", "inputs", "num_blocks"} == {"name", "num_channels", "removed"}
        group.pop("outputs"), group.pop("inputs"), group.pop("num_blocks")
    read = PruningPlan.from_json(json.dumps({**document, "digest": digest(document)}))
    assert (read.removed, read.request, read.achieved) == (plan.removed, plan.request, plan.achieved)
    assert [(group.layers, group.num_blocks) for group in read.groups] == [((), 1)] * len(plan.groups)
    assert PruningPlan.from_json(read.to_json()) == read
    assert list(api.apply_plan(model, read).state_dict()) == list(api.apply_plan(model, plan).state_dict())


def test_a_plan_names_the_layers_of_each_group() -> None:
    """Residual: conv2's output is added to the stem's, so that both, their norms and their two readers go together."""
    layers = {group.name: (set(group.outputs), set(group.inputs)) for group in made().groups}
    stream = {"stem", "bn0", "conv2", "bn2"}
    assert {frozenset(outputs): inputs for outputs, inputs in layers.values()} == {
        frozenset(stream): {"conv1", "head"},
        frozenset({"conv1", "bn1"}): {"conv2"},
        frozenset({"head"}): {"fc"},
    }
    assert all(name in outputs for name, (outputs, _) in layers.items())
    grouped = api.prune(build("grouped"), example(), method="magnitude", ratio=0.5).plan
    # The convolution in two groups reads conv1's channels and writes its own in two blocks.
    assert {group.num_blocks for group in grouped.groups if "grouped" in group.layers} == {2}


@given(PLANS, st.data())
def test_a_document_that_was_cut_is_refused(plan: PruningPlan, data: st.DataObject) -> None:
    text = plan.to_json()
    length = data.draw(st.integers(0, len(text) - 2))
    with pytest.raises(ArtifactError):
        PruningPlan.from_json(text[:length])


def made() -> PruningPlan:
    return api.prune(build("residual"), example(), batches(), method="wanda", ratio=0.5).plan


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d["groups"][0].update(removed=[]),
        lambda d: d["groups"].pop(),
        lambda d: d["request"].update(ratio=0.4),
        lambda d: d["achieved"].update(macs=1),
        lambda d: d["model"].update(shapes="0" * 16),
        lambda d: d.update(digest="0" * 16),
        lambda d: d.pop("digest"),
    ],
    ids=["removed", "group", "request", "achieved", "model", "digest", "no digest"],
)
def test_a_document_that_was_changed_is_refused(change: Any) -> None:
    document = json.loads(made().to_json())
    change(document)
    with pytest.raises(ArtifactError, match="changed after it was written"):
        PruningPlan.from_json(json.dumps(document))


@pytest.mark.parametrize(
    "text", ["[]", "null", "3", "{}", '{"format": "cleanai-plan/9"}', '{"groups": []}'], ids=lambda text: text
)
def test_another_document_is_refused(text: str) -> None:
    with pytest.raises(ArtifactError, match="not a pruning plan: its format is not 'cleanai-plan/4' or an earlier one"):
        PruningPlan.from_json(text)


def test_text_that_is_no_json_is_refused() -> None:
    with pytest.raises(ArtifactError, match="not JSON"):
        PruningPlan.from_json("weights:\n  - 1")


@pytest.mark.parametrize("removed", [(3, 1), (1, 1), (-1,), (4,)], ids=str)
def test_channels_that_cannot_be_are_refused(removed: tuple[int, ...]) -> None:
    with pytest.raises(PruningError, match=r"group 'g' of the plan: .* in \[0, 4\)"):
        GroupPlan(name="g", num_channels=4, removed=removed)


def test_the_channel_ratio_is_of_all_prunable_channels() -> None:
    groups = (
        GroupPlan(name="a", num_channels=6, removed=(0, 1)),
        GroupPlan(name="b", num_channels=4, removed=(3,)),
        GroupPlan(name="c", num_channels=10, removed=()),
    )
    plan = PruningPlan(model={}, groups=groups)
    assert plan.channel_ratio == 3 / 20
    assert plan.removed == {"a": (0, 1), "b": (3,)}
    assert PruningPlan(model={}, groups=()).channel_ratio == 0.0


@pytest.mark.parametrize("net", [*NETS, "vit"])
def test_a_plan_read_back_makes_the_same_model(net: str) -> None:
    if net == "vit":
        model, images, data = tiny_vit(), example(size=16, channels=3), batches(size=16, channels=3, classes=5)
    else:
        model, images, data = build(net), example(), batches()
    result = api.prune(model, images, data, method="coverage", mode="global", ratio=0.4)
    plan = PruningPlan.from_json(result.plan.to_json())
    assert plan == result.plan
    again, expected = api.apply_plan(model, plan).state_dict(), result.model.state_dict()
    assert list(again) == list(expected)
    assert all(torch.equal(value, expected[name]) for name, value in again.items())
    with torch.no_grad():
        assert torch.equal(api.apply_plan(model, plan).eval()(images), result.model(images))


def test_a_plan_for_another_architecture_is_refused() -> None:
    with pytest.raises(ArtifactError, match=r"another architecture \(Residual\) than the one given \(Plain\)"):
        api.apply_plan(build("plain"), made())


def test_the_plan_says_what_was_asked_and_what_came_out() -> None:
    model = build("residual")
    result = api.prune(
        model, example(), batches(), method="coverage", ratio=0.5, seed=4, layer_ratios={"head": 0.2}, max_ratio=0.8
    )
    request, achieved = result.plan.request, result.plan.achieved
    assert (request["method"], request["coverage_metric"], request["ratio"], request["seed"]) == (
        "coverage",
        "normalized_mean",
        0.5,
        4,
    )
    assert request["bounds"]["layer_ratios"] == {"head": 0.2}
    assert request["bounds"]["max_ratio"] == 0.8
    # 3 of the stream's 6, 4 of conv1's 8 and 1 of head's 5 channels go.
    assert achieved["channel_ratio"] == pytest.approx(8 / 19)
    assert achieved["params"] == sum(value.numel() for value in result.model.parameters())
    assert achieved["params_dense"] == sum(value.numel() for value in model.parameters())
