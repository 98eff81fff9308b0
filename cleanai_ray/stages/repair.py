"""The stage `repair`: training-free recovery of what the last pruning step broke."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from cleanai_ray.config.sections import RepairSection
from cleanai_ray.config.study import Study, Trial
from cleanai_ray.registry import STAGES
from cleanai_ray.repair import RepairOptions, repair
from cleanai_ray.stages.base import Stage
from cleanai_ray.stages.state import Pruned, TrialState


@STAGES.register("repair")
class Repair(Stage):
    """Repair the pruned model with calibration images: weight compensation, then batch-norm recalibration."""

    position = 200
    repeats = True
    scored_as = "repaired"
    timed_as = "repair"

    @classmethod
    def applies(cls, study: Study, trial: Trial, step: int) -> bool:
        """Return whether the study has repair switched on; of controls, only torch-pruning's models are repaired."""
        return study.repair.is_on if trial.control is None else trial.control.kind == "torch_pruning"

    @classmethod
    def key(cls, study: Study, trial: Trial) -> Any:
        """Return the study's `repair` section, or that of controls."""
        return _section(study, trial).model_dump(mode="json")

    def run(self, state: TrialState) -> TrialState:
        """Return the state with the repaired model; unchanged if the last pruning step removed nothing."""
        if not state.removed_some:
            return state
        assert state.pruned is not None
        workspace, section = self.setting.workspace, _section(self.setting.workspace.study, self.trial)
        positions = np.arange(min(section.samples, len(workspace.roles.calibration)))
        outcome = repair(
            state.pruned.reference,
            in_numbering_of_reference(state.pruned),
            list(workspace.batches("calibration", positions=positions)),
            RepairOptions(**section.model_dump(exclude={"samples"}), mirror=workspace.source.mirrors),
            moments=state.pruned.moments,
        )
        return replace(state, model=outcome.model, repaired=outcome)


def _section(study: Study, trial: Trial) -> RepairSection:
    """Return the repair of a trial; controls get what users of torch-pruning do: statistics are collected anew."""
    if trial.control is None:
        return study.repair
    return RepairSection(compensation="none", batch_norm="reset", samples=study.repair.samples)


def in_numbering_of_reference(pruned: Pruned) -> Any:
    """Return the outcome of a pruning step, with kept channels numbered as in the model before the step."""
    result, earlier = pruned.result, pruned.earlier
    if earlier is None:
        return result
    return replace(
        result,
        kept_inputs=renumber(result.kept_inputs, earlier.kept_inputs),
        kept_outputs=renumber(result.kept_outputs, earlier.kept_outputs),
    )


def renumber(kept: Mapping[str, np.ndarray], earlier: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return kept channels as positions among those kept earlier; layers that have lost none since are left out.

    Args:
        kept: For each narrowed layer, the indices of its channels in the dense model, ascending.
        earlier: The same after an earlier step.
    """
    found = {}
    for layer, channels in kept.items():
        before = earlier.get(layer)
        if before is None:
            found[layer] = channels
        elif len(channels) < len(before):
            found[layer] = np.searchsorted(before, channels)
    return found
