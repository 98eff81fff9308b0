"""Ignored layers of removed blocks: patterns of them are like their names, in all that reads them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from small_nets import batches, example, randomise
from torch import nn

from cleanai_ray import api
from cleanai_ray.config.sections import PruningSection
from cleanai_ray.config.study import Trial
from cleanai_ray.errors import PruningError
from cleanai_ray.models.resnet20 import ResNetCifar
from cleanai_ray.pruning.block_removal import left_of, plan_blocks
from cleanai_ray.pruning.peer_pruner import PeerPruner
from cleanai_ray.pruning.plan import BlockPlan
from cleanai_ray.pruning.pruning_job import PruningJob
from cleanai_ray.tasks import find_task

IMAGES, EXAMPLE = batches(size=12, sizes=(5, 3)), example(size=12)
BLOCKS = ["layer1.1", "layer3.2"]
PATTERNS = ("layer3.2.con?1", "*.1.conv1")
"""One matches only a layer that goes; one matches layers that go and such as stay."""
STAY = ("layer2.1.conv1", "layer3.1.conv1")
MAGNITUDE = Trial(method="magnitude", ratio=0.3)


@pytest.fixture(scope="module")
def dense() -> nn.Module:
    torch.manual_seed(0)
    return randomise(ResNetCifar(3, 2, (4, 6, 8)))


@pytest.fixture(scope="module")
def plans(dense: nn.Module) -> tuple[BlockPlan, ...]:
    return plan_blocks(dense, EXAMPLE, IMAGES, BLOCKS)


def test_patterns_become_the_names_that_stay(dense: nn.Module, plans: tuple[BlockPlan, ...]) -> None:
    assert left_of(dense, PATTERNS, plans) == STAY
    assert left_of(dense, ["layer3.2.conv1", "conv1"], plans) == ("conv1",)
    assert left_of(dense, PATTERNS, ()) == PATTERNS
    with pytest.raises(PruningError, match=r"ignored_layers names '\*3\.9\.conv1', which is not a module"):
        left_of(dense, ["*3.9.conv1"], plans)


def test_a_pattern_that_matches_only_a_layer_that_goes_prunes_as_its_name_does(dense: nn.Module) -> None:
    options: dict[str, Any] = {"method": "magnitude", "ratio": 0.3, "remove_blocks": BLOCKS}
    found = api.prune(dense, EXAMPLE, IMAGES, ignored_layers=PATTERNS, **options).plan
    named = api.prune(dense, EXAMPLE, IMAGES, ignored_layers=["layer3.2.conv1", *STAY], **options).plan
    assert found.removed.keys() == named.removed.keys()
    assert found.removed
    assert not found.removed.keys() & set(STAY)
    assert found.request["bounds"]["ignored_layers"] == list(PATTERNS)


def test_a_job_has_them_as_well(dense: nn.Module, plans: tuple[BlockPlan, ...]) -> None:
    bounds, task = PruningSection(ignored_layers=PATTERNS), find_task("classification")
    job = PruningJob(model=dense, example_inputs=EXAMPLE, trial=MAGNITUDE, bounds=bounds, task=task, blocks=plans)
    assert job.ignored == STAY
    assert not {group.name for group in job.graph().groups} & set(STAY)


def test_torch_pruning_ignores_what_is_left_of_them(dense: nn.Module, plans: tuple[BlockPlan, ...]) -> None:
    """It prunes the model without the blocks, which has no layer3.2.conv1."""
    bounds = PruningSection(ignored_layers=("layer3.2.conv1", *PATTERNS, "fc"))
    plan = PeerPruner(dense, EXAMPLE, MAGNITUDE, bounds=bounds, blocks=plans).run().plan
    assert plan.removed
    assert not plan.removed.keys() & {*STAY, "fc"}
    assert plan.request["bounds"]["ignored_layers"] == ["layer3.2.conv1", *PATTERNS, "fc"]
