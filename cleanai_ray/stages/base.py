"""The interface of a trial's stages."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from cleanai_ray.config.study import Study, Trial
from cleanai_ray.stages.dense_measures import DenseMeasures
from cleanai_ray.stages.state import TrialState
from cleanai_ray.stages.workspace import Workspace
from cleanai_ray.training.context import TrainingContext


@dataclass(frozen=True, kw_only=True, eq=False)
class TrialSetting:
    """The surroundings of a trial: what its stages read and never change.

    Attributes:
        workspace: The opened study.
        dense_model: The dense model on the workspace's device.
        measures: Measurements of the dense model that all trials share.
        context: The processes that fine-tune and score, and where they report and keep checkpoints.
    """

    workspace: Workspace
    dense_model: nn.Module
    measures: DenseMeasures
    context: TrainingContext


class Stage(ABC):
    """One stage of a trial. Subclasses are registered in `cleanai_ray.registry.STAGES`, one a file.

    Trials whose stages have equal keys from the first one on share the states after them: each such stage runs once.

    Attributes:
        position: Stages run in rising order of it: prune 100, repair 200, finetune 300, quantize 400, measure 500.
        repeats: True for a stage that follows every pruning step where `finetune.between_steps` asks for fine-tuning
            between the steps; the others run after the last step only.
        scored_as: Name of the score taken after the stage at the end, the `NAME` of `accuracy_NAME`; None: none is.
        is_variant: True where other trials end before this stage, so that the model before it counts as a result, too.
        timed_as: Name of the `seconds_` column that its time counts towards.

    Args:
        setting: The surroundings of the trial.
        trial: The cell of the sweep.
        step: The pruning step that the stage belongs to, from 1 to `trial.steps`.
    """

    position: ClassVar[int]
    repeats: ClassVar[bool] = False
    scored_as: ClassVar[str | None] = None
    is_variant: ClassVar[bool] = False
    timed_as: ClassVar[str]

    def __init__(self, setting: TrialSetting, trial: Trial, step: int) -> None:
        self.setting = setting
        self.trial = trial
        self.step = step

    @property
    def is_last_step(self) -> bool:
        """True after the last pruning step."""
        return self.step == self.trial.steps

    @classmethod
    def applies(cls, study: Study, trial: Trial, step: int) -> bool:
        """Return whether a trial of a study has this stage after one of its pruning steps, from 1."""
        return True

    @classmethod
    @abstractmethod
    def key(cls, study: Study, trial: Trial) -> Any:
        """Return, as JSON-like values, everything the stage's result depends on beside the state before it.

        The data, the dense model and the draw of the calibration samples need not be named: trials that differ in
        those share nothing.
        """

    @abstractmethod
    def run(self, state: TrialState) -> TrialState:
        """Return the state after the stage.

        Raises:
            CleanAIError: When the stage cannot be carried out.
        """
