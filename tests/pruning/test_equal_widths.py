"""Groups that stay equally wide: as a property of random groups, and through pruning, plans and refusals."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from packed_attention import packed_vit
from small_nets import batches, example
from test_core_selection import group

import cleanai_ray as cleanai
from cleanai_ray.errors import PruningError
from cleanai_ray.graph.graph import ChannelGraph, ChannelGroup
from cleanai_ray.graph.trials import Trials
from cleanai_ray.pruning.allocation import search_allocation
from cleanai_ray.pruning.equal_widths import EqualGroups, match_equal_widths
from cleanai_ray.pruning.granularity import Granularity
from cleanai_ray.pruning.selection import SelectionRequest, Selector

MLP = ("blocks.0.fc1", "blocks.1.fc1")


def prune(**options: Any) -> cleanai.PruneResult:
    data = batches(size=16, channels=3, classes=5, sizes=(12,))
    wanted = {"method": "magnitude", "round_to": None, "equal_widths": ["*.fc1", "*.heads"], **options}
    return cleanai.prune(packed_vit(), example(1, size=16, channels=3), data, progress=False, **wanted)


def widths(result: cleanai.PruneResult, *names: str) -> set[int]:
    return {each.num_channels - len(each.removed) for each in result.plan.groups if each.name in names}


@st.composite
def selections(draw: st.DrawFn) -> tuple[Selector, list[tuple[str, ...]], list[ChannelGroup], SelectionRequest]:
    """Selectors of two kinds of equal groups and a group by itself, with random scores."""
    kinds = [tuple(f"{kind}{number}" for number in range(draw(st.integers(2, 4)))) for kind in "ab"]
    blocks = [draw(st.sampled_from([1, 2])) for _ in kinds]
    sizes = [block * draw(st.integers(2, 12)) for block in blocks]
    groups = [group(name, size, block) for kind, size, block in zip(kinds, sizes, blocks, strict=True) for name in kind]
    groups.append(group("other", draw(st.integers(2, 24))))
    seed = draw(st.integers(0, 10**6))
    random = np.random.default_rng(seed)
    dense = {each.name: each.num_channels for each in groups}
    tensors = {name: torch.from_numpy(random.random(width)) for name, width in dense.items()}
    prices = None
    if draw(st.booleans()):
        prices = {each.name: np.sort(random.random(each.num_units)) for each in groups}
    is_budget = draw(st.booleans()) or prices is not None
    share = draw(st.floats(0.35, 0.95))
    request = SelectionRequest(
        mode=draw(st.sampled_from(["local", "global", "isomorphic"])),
        ratio=None if is_budget else 1 - share,
        limit=share * sum(dense.values()) if is_budget else None,
        equal=tuple(kinds),
        granularity=draw(st.sampled_from([None, Granularity(multiple=4, least_steps=3)])),
        by_time=is_budget and draw(st.booleans()),
    )
    return Selector(groups, tensors, dense, request, prices), kinds, groups, request


def channels_left(groups: list[ChannelGroup]) -> Callable[[Mapping[str, int]], float]:
    return lambda removed: float(sum(each.num_channels - removed.get(each.name, 0) for each in groups))


@given(selections())
def test_equal_groups_are_equal_and_a_budget_is_met_to_a_step(found: Any) -> None:
    """The cost is the number of channels; less than a step of a kind of groups is left of a budget."""
    selector, kinds, groups, request = found
    dense, blocks = ({each.name: getattr(each, key) for each in groups} for key in ("num_channels", "num_blocks"))
    cost = channels_left(groups)
    counts = selector.counts(cost)
    gone = {name: len(channels) for name, channels in selector.channels(counts).items()}
    for kind in kinds:
        assert len({gone.get(name, 0) for name in kind}) == 1
    if request.limit is None:
        return
    assert cost(gone) <= request.limit * (1 + 1e-9)
    if not request.by_time:
        step = request.granularity.step if request.granularity else lambda channels, blocks: blocks
        sizes = [len(kind) * step(dense[kind[0]], blocks[kind[0]]) for kind in [*kinds, ("other",)]]
        assert request.limit - cost(gone) < max(sizes)


@given(selections(), st.integers(0, 50))
def test_a_search_moves_equal_groups_together(found: Any, seed: int) -> None:
    selector, kinds, groups, request = found
    if request.limit is None:
        return
    cost = channels_left(groups)
    start = selector.counts(cost)
    problem = selector.allocation_problem(start, cost, 12)
    random = np.random.default_rng(seed)

    def evaluate(candidates: Any, images: str) -> list[float]:
        for counts in candidates:
            assert all(len({counts.get(name, 0) for name in kind}) == 1 for kind in kinds)
            assert problem.is_met(counts)
        return [float(random.random()) for _ in candidates]

    counts = search_allocation(problem, evaluate, seed=seed).counts
    assert all(len({counts.get(name, 0) for name in kind}) == 1 for kind in kinds)


@pytest.mark.parametrize(
    "options", [{"ratio": 0.4}, {"budget": {"macs": 0.6}}, {"budget": {"params": 0.6}, "steps": 3}]
)
def test_pruned_groups_are_equal_and_the_plan_says_so(options: dict[str, Any], tmp_path: Path) -> None:
    result = prune(mode="global", **options)
    assert len(widths(result, *MLP)) == len(widths(result, "blocks.0.attn.heads", "blocks.1.attn.heads")) == 1
    assert widths(result, *MLP) != {64}
    assert result.plan.request["bounds"]["equal_widths"] == ["*.fc1", "*.heads"]
    assert "equal_widths *.fc1, *.heads" in result.plan.explain()
    if "budget" in options:
        ((resource, limit),) = options["budget"].items()
        achieved = result.plan.achieved[resource] / result.plan.achieved[f"{resource}_dense"]
        assert limit - 0.02 <= achieved <= limit
    cleanai.save(result, tmp_path)
    images = example(2, size=16, channels=3)
    with torch.no_grad():
        assert torch.equal(cleanai.load(tmp_path, packed_vit).eval()(images), result.model(images))


def test_they_would_differ_otherwise() -> None:
    result = prune(mode="global", ratio=0.4, equal_widths=[])
    assert len(widths(result, *MLP)) == 2
    assert "equal_widths" not in result.plan.request["bounds"]


def test_a_ratio_of_one_group_is_that_of_all() -> None:
    """A quarter of 64 goes from both."""
    assert widths(prune(ratio=0.5, layer_ratios={"blocks.0.fc1": 0.25}), *MLP) == {48}
    with pytest.raises(PruningError, match=r"give 0\.1 to 'blocks\.0\.fc1' and 0\.2 to 'blocks\.1\.fc1', which equal"):
        prune(ratio=0.5, layer_ratios={"blocks.0.fc1": 0.1, "blocks.1.fc1": 0.2})


@pytest.mark.parametrize(
    ("patterns", "said"),
    [
        (["*.none"], r"equal_widths names '\*\.none', and no prunable group's name matches it; prunable groups: "),
        (["blocks.0.*"], r"which matches groups of different widths: '.*' has \d+ channels"),
        (["*.fc1", "blocks.0.fc1"], r"'\*\.fc1' and 'blocks\.0\.fc1', which both match group 'blocks\.0\.fc1'"),
    ],
)
def test_patterns_that_cannot_be_kept_are_refused(patterns: list[str], said: str) -> None:
    with pytest.raises(PruningError, match=said):
        prune(ratio=0.5, equal_widths=patterns)


def test_patterns_name_layers_that_keep_their_width() -> None:
    names = {
        group.name for group in prune(ratio=0.5, equal_widths=[], ignored_layers=["*.attn", "*.0.fc?"]).plan.groups
    }
    assert names == {"blocks.1.fc1"}
    with pytest.raises(PruningError, match=r"ignored_layers names '\*\.none', which is not a module"):
        prune(ratio=0.5, ignored_layers=["*.none"])


def test_where_one_must_keep_its_width_all_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """Found out when channels are to be removed, as where the code of a layer relies on its width."""
    tried = ChannelGraph.try_to_remove

    def unfit(self: ChannelGraph, removed: Any) -> list[str]:
        if MLP[0] in removed:
            self._unfit.add(MLP[0])
            self.groups = self._listed_groups()
            return [f"layer '{MLP[0]}' keeps its width: for the test"]
        return tried(self, removed)

    monkeypatch.setattr(ChannelGraph, "try_to_remove", unfit)
    result = prune(ratio=0.5)
    assert widths(result, *MLP) == {64}
    assert f"equal_widths keeps '{MLP[1]}' as wide as '{MLP[0]}', which cannot be cut" in result.plan.warnings


def test_kinds_are_known_by_their_first_group() -> None:
    groups = [group("a0", 4), group("b", 6), group("a1", 4)]
    assert match_equal_widths(groups, ["a?"]) == (("a0", "a1"),)
    equal = EqualGroups.of(["a0", "b", "a1"], [("a0", "a1")])
    assert equal.members == {"a0": ("a0", "a1"), "b": ("b",)}
    assert equal.spread({"a0": 2, "b": 1}) == {"a0": 2, "a1": 2, "b": 1}


def test_of_groups_that_keep_their_width_those_as_wide_as_the_others_count() -> None:
    groups = [group("a0", 4), group("a1", 4), group("a2", 6), group("b0", 4), group("b1", 6)]
    assert match_equal_widths(groups, ["a?", "b?"], kept={"a0", "a2", "b0", "b1"}) == (("a0", "a1"),)
    with pytest.raises(PruningError, match=r"'a\?' and '\?0', which both match group 'a0'"):
        match_equal_widths(groups, ["a?", "?0"], kept={"a0", "a2"})


KEPT = f"equal_widths keeps '{MLP[1]}' as wide as '{MLP[0]}', which cannot be cut"


def test_where_one_is_ignored_the_others_stay_as_they_are_and_the_plan_says_so() -> None:
    """Heads of both blocks are narrowed as they are without the pattern of the layers."""
    result = prune(ratio=0.5, ignored_layers=["*.0.fc1"])
    assert widths(result, *MLP) == {64}
    assert result.plan.warnings == (KEPT,)
    assert widths(result, "blocks.0.attn.heads", "blocks.1.attn.heads") == {16}
    assert prune(ratio=0.5, ignored_layers=["*.fc1"]).plan.warnings == ()


def test_where_one_fails_its_trial_the_others_stay_as_they_are_and_the_plan_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sort_out = Trials.sort_out

    def failing(self: Trials, groups: Any) -> Any:
        good, reasons = sort_out(self, [group for group in groups if group.name != MLP[0]])
        return good, reasons | {MLP[0]: "for the test"}

    monkeypatch.setattr(Trials, "sort_out", failing)
    result = prune(ratio=0.5)
    assert widths(result, *MLP) == {64}
    assert result.plan.warnings == (f"layer '{MLP[0]}' keeps its width: for the test", KEPT)


def test_only_groups_of_removed_blocks_excuse_a_pattern() -> None:
    options: dict[str, Any] = {"ratio": 0.5, "remove_blocks": ["blocks.0.attn"]}
    assert prune(equal_widths=["blocks.0.attn.heads", "*.fc1"], **options).plan.removed
    with pytest.raises(PruningError, match=r"equal_widths names '\*\.typo', and no prunable group's name matches it"):
        prune(equal_widths=["*.typo"], **options)
