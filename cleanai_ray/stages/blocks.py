"""The residual blocks that a study removes: priced on its calibration images, the cheapest first.

Everything after that is measured on the model without them: activation statistics, second moments, sensitivity.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from torch import nn

from cleanai_ray.config.study import Study
from cleanai_ray.pruning.block_removal import without_blocks
from cleanai_ray.pruning.plan import BlockPlan
from cleanai_ray.repair import RepairOptions
from cleanai_ray.sensitivity import BlockError, choose_blocks, measure_blocks
from cleanai_ray.stages.workspace import Workspace


@dataclass(frozen=True, kw_only=True, eq=False)
class PricedBlocks:
    """The residual blocks of a study's dense model.

    Attributes:
        errors: Every block with its price, in execution order.
        removed: Names of those that trials remove.
    """

    errors: tuple[BlockError, ...] = ()
    removed: tuple[str, ...] = ()

    @property
    def plans(self) -> tuple[BlockPlan, ...]:
        """The plans of the blocks that are removed, in execution order."""
        return tuple(error.plan for error in self.errors if error.name in self.removed)

    def to_bytes(self) -> bytes:
        """Serialise as JSON."""
        return json.dumps({"errors": [asdict(error) for error in self.errors], "removed": self.removed}).encode()

    @staticmethod
    def from_bytes(content: bytes) -> PricedBlocks:
        """Restore what `to_bytes` wrote."""
        document = json.loads(content)
        errors = [{**fields, "plan": BlockPlan.from_dict(fields["plan"])} for fields in document["errors"]]
        return PricedBlocks(errors=tuple(BlockError(**fields) for fields in errors), removed=tuple(document["removed"]))

    def rows(self) -> list[dict[str, Any]]:
        """Return the rows of blocks.parquet."""
        return [
            {
                "block": error.name,
                "block_index": index,
                "layers": list(error.plan.block.layers),
                "macs": error.plan.macs,
                "macs_share": error.macs,
                "divergence": error.error,
                "divergence_repaired": error.error_repaired,
                "price": error.price,
                "is_removed": error.name in self.removed,
            }
            for index, error in enumerate(self.errors)
        ]


@dataclass(frozen=True, kw_only=True)
class BareWeights:
    """The dense weights, and the blocks without which the model is measured.

    Attributes:
        content: Content of the dense weights' file.
        blocks: The blocks, in execution order.
    """

    content: bytes
    blocks: tuple[BlockPlan, ...]


def price_study_blocks(workspace: Workspace, model: nn.Module) -> PricedBlocks:
    """Price every residual block of a study's dense model, and choose those that `pruning.remove_blocks` asks for.

    Raises:
        PruningError: When a name is not that of a removable block, or the model has too few of them.
    """
    section = workspace.study.pruning.remove_blocks
    assert section is not None
    limit = workspace.study.data.calibration.second_moment_samples
    positions = np.arange(min(limit, len(workspace.roles.calibration)))
    batches = workspace.batches("calibration", positions=positions)
    errors = measure_blocks(model, workspace.example_input(), batches, repair=_pricing_repair(workspace.study))
    chosen = choose_blocks(errors, names=section.names, macs=section.macs, count=section.count)
    return PricedBlocks(errors=errors, removed=tuple(chosen))


def _pricing_repair(study: Study) -> bool | RepairOptions:
    """Return the repair after which blocks are priced: a cheap one of what the study repairs, or none."""
    if study.repair.compensation != "none":
        return True
    return study.repair.batch_norm != "none" and RepairOptions(compensation="none", batch_norm="relative")


def blocks_of(weights: bytes | BareWeights) -> tuple[BlockPlan, ...]:
    """Return the blocks without which a model is measured."""
    return weights.blocks if isinstance(weights, BareWeights) else ()


def measured_model(workspace: Workspace, weights: bytes | BareWeights) -> nn.Module:
    """Return the model that a study measures, on the device: the dense one, or it without some blocks."""
    if isinstance(weights, BareWeights):
        return without_blocks(workspace.dense_model(weights.content), weights.blocks)
    return workspace.dense_model(weights)


def blocks_as_json(plans: Sequence[BlockPlan]) -> list[dict[str, Any]]:
    """Return plans of blocks as JSON-like values, for a trial's record."""
    found: list[dict[str, Any]] = json.loads(json.dumps([asdict(plan) for plan in plans]))
    return found
