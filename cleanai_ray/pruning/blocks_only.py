"""The removal of whole blocks and of nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from cleanai_ray.graph.graph import ChannelGraph
from cleanai_ray.nn.complexity import measure_complexity
from cleanai_ray.nn.modes import restore_flags
from cleanai_ray.nn.open_attention import open_attention
from cleanai_ray.pruning.block_removal import without_blocks
from cleanai_ray.pruning.cost import both_costs
from cleanai_ray.pruning.history import earlier_plans
from cleanai_ray.pruning.layer_rows import layer_rows
from cleanai_ray.pruning.plan import BlockPlan, PruningPlan
from cleanai_ray.pruning.plan_parts import group_plan, identify
from cleanai_ray.pruning.prune_result import PruneResult


def remove_only(model: nn.Module, example_inputs: Any, blocks: Sequence[BlockPlan]) -> PruneResult:
    """Return a copy of a model without some blocks, in which every layer that is left keeps its width.

    Args:
        model: The dense model; it is left as it is.
        example_inputs: One input batch, or a tuple that holds just it, on the model's device.
        blocks: The blocks, of `plan_blocks`.

    Raises:
        PruningError: When the model cannot be traced, or has not got a block's modules.
    """
    dense = open_attention(model)
    bare = without_blocks(dense, blocks)
    graph = ChannelGraph(bare, example_inputs)
    before, after = (measure_complexity(each, graph.example_inputs) for each in (dense, graph.model))
    plan = PruningPlan(
        model=identify(dense, graph.example_inputs),
        groups=tuple(group_plan(group, graph.kept_channels[group.name]) for group in graph.groups),
        request={"blocks_only": True},
        achieved={"channel_ratio": 0.0, **both_costs(before, after)},
        warnings=tuple(graph.notes),
        blocks=tuple(blocks),
        earlier=earlier_plans(model),
    )
    restore_flags(graph.model, bare)
    groups = {group.name: group for group in graph.groups}
    return PruneResult(
        model=graph.model,
        plan=plan,
        layers=layer_rows(groups, before, after, {}),
        kept_inputs={},
        kept_outputs={},
    )
