"""The state of a trial between two of its stages."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn

from cleanai_ray.deploy import Quantized
from cleanai_ray.pruning.prune_result import PruneResult
from cleanai_ray.pruning.pruner import Pruner
from cleanai_ray.repair import ConsumerMoments, RepairOutcome
from cleanai_ray.stages.scores import StageScore


@dataclass(frozen=True, kw_only=True, eq=False)
class Pruned:
    """A pruned model, and the model it was cut from.

    Repair has to restore what the last pruning step removed, so its reference is the model before that step: the dense
    model, or the fine-tuned model of the step before. After fine-tuning, the dense model would be wrong: refitting to
    it would compensate a second time for channels that were compensated already, and undo the fine-tuning.

    Attributes:
        result: What is left of the dense model, and the plan, in the dense model's numbering.
        reference: The model before the last step.
        earlier: What was left of the dense model before the last step; None if that was all of it.
        moments: Second moments of the inputs of the reference's layers, if they have been measured.
    """

    result: PruneResult
    reference: nn.Module
    earlier: PruneResult | None = None
    moments: ConsumerMoments | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class TrialState:
    """A trial after some of its stages.

    A stage returns a new state and never changes what an earlier one holds, so several trials can continue from one.

    Attributes:
        model: The model in float.
        pruner: Takes the next pruning step, if steps alternate with fine-tuning.
        pruned: The outcome of the last pruning step.
        removed_some: False if the last pruning step removed nothing.
        repaired: The outcome of the last repair.
        best_epoch: The epoch that the model's weights are from, if it was fine-tuned after the last step.
        history: A row per epoch, with the columns of history.parquet except `trial_id`.
        quantized: The quantised model.
        scores: Scores by stage, in the order in which they were taken.
        latency: Rows of latency.parquet, except `trial_id`.
        costs: Columns of results.parquet about size, MACs and latency.
        notices: What went on in another way than asked, for the trial's warnings.
        plugin_keys: Keys of the stages of plug-ins that ran.
        is_kept: True if another trial may start from this state, so that its pruner must not be changed.
        seconds: Seconds by the name of the `seconds_` column they count towards.
    """

    model: nn.Module
    pruner: Pruner | None = None
    pruned: Pruned | None = None
    removed_some: bool = True
    repaired: RepairOutcome | None = None
    best_epoch: int | None = None
    history: tuple[dict[str, Any], ...] = ()
    quantized: Quantized | None = None
    scores: Mapping[str, StageScore] = field(default_factory=dict)
    latency: tuple[dict[str, Any], ...] = ()
    costs: Mapping[str, Any] = field(default_factory=dict)
    notices: tuple[str, ...] = ()
    plugin_keys: tuple[str, ...] = ()
    is_kept: bool = False
    seconds: Mapping[str, float] = field(default_factory=dict)

    @property
    def final_model(self) -> nn.Module:
        """The model as it would be used: the quantised one if there is one."""
        return self.model if self.quantized is None else self.quantized.model

    def spent(self, name: str, seconds: float) -> TrialState:
        """Return the state with seconds added under a name."""
        return replace(self, seconds={**self.seconds, name: self.seconds.get(name, 0.0) + seconds})

    def without_time(self) -> TrialState:
        """Return the state without the seconds it took, for another trial that starts from it."""
        return replace(self, seconds={})

    def told(self, notices: Iterable[str]) -> TrialState:
        """Return the state with notices added."""
        return replace(self, notices=tuple(dict.fromkeys([*self.notices, *notices])))

    def scored(self, name: str, score: StageScore) -> TrialState:
        """Return the state with the score of a stage."""
        earlier = {key: value for key, value in self.scores.items() if key != name}
        return replace(self, scores={**earlier, name: score})
