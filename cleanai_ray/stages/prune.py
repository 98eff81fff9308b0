"""The stage `prune`: scores channels, chooses some and cuts them away."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

from torch import nn

from cleanai_ray.config.controls import Control
from cleanai_ray.config.study import Study, Trial
from cleanai_ray.importance.base import create_method
from cleanai_ray.nn.batch_limit import process_limit
from cleanai_ray.pruning.allocation import Allocation, AllocationProblem, search_allocation
from cleanai_ray.pruning.block_removal import without_blocks
from cleanai_ray.pruning.latency_budget import prune_to_budget
from cleanai_ray.pruning.measurements import Measurements
from cleanai_ray.pruning.peer_pruner import PeerPruner
from cleanai_ray.pruning.plan import BlockPlan
from cleanai_ray.pruning.predicted_latency import PredictedLatency
from cleanai_ray.pruning.prune_result import PruneResult
from cleanai_ray.pruning.pruner import Pruner
from cleanai_ray.registry import STAGES
from cleanai_ray.sensitivity.block_choice import with_choice
from cleanai_ray.stages.base import Stage
from cleanai_ray.stages.calibration import calibrate_locally
from cleanai_ray.stages.dense_measures import study_candidates
from cleanai_ray.stages.fingerprints import bounds_key
from cleanai_ray.stages.latency_profile import predicted_latency, study_clock
from cleanai_ray.stages.state import Pruned, TrialState
from cleanai_ray.statistics import ActivationStatistics


@STAGES.register("prune")
class Prune(Stage):
    """Remove channels: all steps at once, or one step at a time if the study fine-tunes between steps.

    After step k of n, (1 - ratio)^(k/n) of the channels are left (for a budget: budget^(k/n) of the dense cost). If
    steps alternate with fine-tuning, the next step scores the fine-tuned model: it reads the weights of the smaller
    model; methods that measure again between steps measure that model; other methods read the dense model's statistics
    of the remaining channels. If a step other than the last removes nothing, no repair and no fine-tuning follows it.
    """

    position = 100
    repeats = True
    scored_as = "pruned"
    restarts = False
    timed_as = "prune"

    @classmethod
    def key(cls, study: Study, trial: Trial) -> Any:
        """Return what defines the trial, except for the quantisation, which only affects how widths are rounded."""
        cell = trial.model_copy(update={"quantization": "none"})
        is_timed = trial.budget is not None and trial.budget.resource == "latency"
        timing, target = (study.evaluation.latency, study.evaluation.target) if is_timed else (None, None)
        return [
            cell.identity,
            bounds_key(study, trial.quantization),
            timing and timing.model_dump(mode="json"),
            *([target.model_dump(mode="json")] if target else []),
            study.finetune.between_steps > 0,
        ]

    def run(self, state: TrialState) -> TrialState:
        """Return the state with the pruned model."""
        control = self.trial.control
        if control is not None and not control.trains_anew:
            return self._state_after(state, self._without_method(control), None)
        if not self.setting.workspace.study.finetune.between_steps or self.trial.steps == 1:
            return self._all_steps_at_once(state)
        pruner = self._pruner(self.trial) if state.pruner is None else state.pruner
        if state.pruner is not None and state.is_kept:
            pruner = pruner.branch()
        if state.pruner is not None and state.removed_some:
            pruner.adopt(state.model)
        removed_some = pruner.take_step(self.step)
        if not removed_some and not self.is_last_step:
            return replace(state, pruner=pruner, removed_some=False, is_kept=False)
        result = pruner.finish() if self.is_last_step else pruner.present()
        return self._state_after(state, result, None if self.is_last_step else pruner)

    def _all_steps_at_once(self, state: TrialState) -> TrialState:
        workspace, latency = self.setting.workspace, None
        if self.trial.budget is not None and self.trial.budget.latency is not None:
            blocks = self.setting.measures.blocks
            latency = predicted_latency(workspace, self.setting.profile, self._blocks, blocks.time_saved)
        result = prune_to_budget(
            lambda part: self._pruner(part, latency).run(),
            self.trial,
            lambda small: study_clock(workspace).compare(self.setting.dense_model, small),
        )
        return self._state_after(state, result, None)

    def _without_method(self, control: Control) -> PruneResult:
        """Return the result of a control that no method prunes: by torch-pruning, or of full width."""
        workspace = self.setting.workspace
        kind = PeerPruner if control.kind == "torch_pruning" else Pruner
        pruner = kind(
            self.setting.dense_model,
            workspace.example_input(),
            self.trial,
            bounds=workspace.study.pruning,
            ignored_layers=workspace.ignored_layers(),
        )
        return pruner.run() if control.kind == "torch_pruning" else pruner.present()

    def _state_after(self, state: TrialState, result: PruneResult, pruner: Pruner | None) -> TrialState:
        """Return the state after a step. The moments are the dense model's, so only the first step can use them."""
        is_first = state.pruned is None
        result = with_choice(result, self.setting.measures.choice_for(self.trial) if self._blocks_are_own else None)
        pruned = Pruned(
            result=result,
            reference=self.setting.dense_model if is_first else state.model,
            earlier=None if state.pruned is None else state.pruned.result,
            # Moments of the model without blocks do not say what the dense one computes.
            moments=self.setting.measures.moments if is_first and not self.setting.measures.blocks.plans else None,
        )
        return replace(state, model=result.model, pruner=pruner, pruned=pruned, removed_some=True, is_kept=False)

    def _pruner(self, part: Trial, latency: PredictedLatency | None = None) -> Pruner:
        workspace, measures = self.setting.workspace, self.setting.measures
        method = create_method(self.trial.method, dict(self.trial.options))
        return Pruner(
            self.setting.dense_model,
            workspace.example_input(),
            part,
            bounds=workspace.study.pruning,
            ignored_layers=workspace.ignored_layers(),
            measured=Measurements(
                statistics=measures.statistics if method.needs_statistics else None,
                curves=measures.curves,
                remeasure=self._remeasure,
                observe=workspace.study.data.calibration.observe,
                allocate=self._allocate,
                latency=latency,
                multiple=workspace.study.multiple,
            ),
            blocks=self._blocks,
        )

    @property
    def _blocks(self) -> tuple[BlockPlan, ...]:
        return self.setting.measures.blocks.plans if self._blocks_are_own else ()

    @property
    def _blocks_are_own(self) -> bool:
        """Whether the trial removes the study's blocks: a control of full depth does not."""
        return self.trial.control is None or self.trial.control.kind == "scratch"

    def _remeasure(self, smaller: nn.Module) -> ActivationStatistics:
        measure = partial(calibrate_locally, self.setting.workspace, smaller, self.trial)
        return process_limit.within_memory(measure, "calibration between steps")

    def _allocate(self, problem: AllocationProblem) -> Allocation:
        """Return the allocation that the study has searched for; for a latency budget, search here."""
        workspace, measures = self.setting.workspace, self.setting.measures
        if problem.key in measures.allocations:
            return measures.allocations[problem.key]
        bare = without_blocks(self.setting.dense_model, self._blocks)
        return search_allocation(problem, study_candidates(workspace, bare, measures))
