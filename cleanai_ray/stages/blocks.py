"""The residual blocks that a study removes: priced on its calibration images, the cheapest first.

Everything after that is measured on the model without them: activation statistics, second moments, sensitivity.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
from torch import nn

from cleanai_ray.config.study import Study
from cleanai_ray.config.sweep import Budget
from cleanai_ray.profile.blocks import time_blocks
from cleanai_ray.pruning.block_removal import without_blocks
from cleanai_ray.pruning.plan import BlockPlan
from cleanai_ray.repair import RepairOptions
from cleanai_ray.sensitivity import BlockError, choose_blocks, measure_blocks
from cleanai_ray.sensitivity.block_choice import BlockChoice
from cleanai_ray.sensitivity.blocks import cheap_repair
from cleanai_ray.stages.latency_profile import architecture, study_clock
from cleanai_ray.stages.workspace import Workspace

BLOCKS_FILE = "blocks.json"
"""The file of a folder of measurements that keeps the prices."""


@dataclass(frozen=True, kw_only=True, eq=False)
class PricedBlocks:
    """The residual blocks of a study's dense model.

    Attributes:
        errors: Every block with its price, in execution order.
        removed: Names of those that trials remove.
        choices: The choice for each budget, by the budget as text, where `pruning.remove_blocks` is auto.
    """

    errors: tuple[BlockError, ...] = ()
    removed: tuple[str, ...] = ()
    choices: Mapping[str, BlockChoice] = field(default_factory=dict)

    @property
    def plans(self) -> tuple[BlockPlan, ...]:
        """The plans of the blocks that are removed, in execution order."""
        return tuple(error.plan for error in self.errors if error.name in self.removed)

    @property
    def time_saved(self) -> float:
        """The time that the removed blocks save together, as a fraction of the dense model's; 0 if none was timed."""
        return sum(error.time or 0.0 for error in self.errors if error.name in self.removed)

    def to_bytes(self) -> bytes:
        """Serialise as JSON, without the choices."""
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
                "params_share": error.params,
                "time_share": error.time,
                "is_removed": error.name in self.removed or bool(self._budgets(error.name)),
                "budgets": self._budgets(error.name) if self.choices else None,
            }
            for index, error in enumerate(self.errors)
        ]

    def _budgets(self, name: str) -> list[str]:
        """Return the budgets for which a block was chosen."""
        return [budget for budget, choice in self.choices.items() if name in choice.names]


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

    Where it is auto, none is chosen yet: each budget has a choice of its own. If a budget limits latency, the model
    without each block is timed as well.

    Raises:
        PruningError: When a name is not that of a removable block, or the model has too few of them.
    """
    study = workspace.study
    section = study.pruning.remove_blocks
    assert section is not None
    repair = pricing_repair(study) or False
    batches = workspace.batches("calibration", positions=pricing_positions(workspace))
    errors = measure_blocks(model, workspace.example_input(), batches, repair=repair)
    if meets_time(study):
        times = time_blocks(architecture(study), [error.plan for error in errors], study_clock(workspace).time_models)
        errors = tuple(replace(error, time=times[error.name]) for error in errors)
    if section == "auto":
        return PricedBlocks(errors=errors)
    chosen = choose_blocks(errors, names=section.names, macs=section.macs, count=section.count)
    return PricedBlocks(errors=errors, removed=tuple(chosen))


def meets_time(study: Study) -> bool:
    """Return whether a study has a budget of latency."""
    return any(budget.resource == "latency" for budget in study.sweep.budgets)


def pricing_positions(workspace: Workspace) -> np.ndarray:
    """Return the places of the calibration samples that blocks are priced and chosen on."""
    limit = workspace.study.data.calibration.second_moment_samples
    return np.arange(min(limit, len(workspace.roles.calibration)))


def pricing_repair(study: Study) -> RepairOptions | None:
    """Return the repair after which blocks are priced: a cheap one of what the study repairs, or none."""
    return cheap_repair(study.repair.compensation, study.repair.batch_norm)


def choice_file(folder: str, budget: Budget) -> str:
    """Return the file of a folder of measurements that keeps the choice of a budget's blocks."""
    return f"{folder}/block_choices/{budget}.json"


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
