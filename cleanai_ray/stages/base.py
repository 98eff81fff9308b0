"""The interface of a trial's stages."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import polars as pl
from torch import nn

from cleanai_ray.config.study import Study, Trial
from cleanai_ray.evaluation.kept_logits import KeptLogits
from cleanai_ray.stages.dense_measures import DenseMeasures
from cleanai_ray.stages.state import TrialState
from cleanai_ray.stages.workspace import Workspace
from cleanai_ray.training.context import TrainingContext


@dataclass(frozen=True, kw_only=True, eq=False)
class TrialSetting:
    """The surroundings of a trial, which its stages read and never change.

    Attributes:
        workspace: The opened study.
        dense_model: The dense model on the workspace's device.
        dense_logits: Its logits on the evaluation samples.
        measures: Measurements of the dense model that all trials share.
        context: The processes that fine-tune and score, and the places where they report and keep checkpoints. The
            work they share is that of `fine_tune_part` and `score_model`; any other training takes a `LocalContext`.
        profile: The study's profile.parquet, for latency budgets; None: a trial that needs it measures it itself.
    """

    workspace: Workspace
    dense_model: nn.Module
    dense_logits: KeptLogits
    measures: DenseMeasures
    context: TrainingContext
    profile: pl.DataFrame | None = None


class Stage(ABC):
    """One stage of a trial. Subclasses are registered in `cleanai_ray.registry.STAGES`, one a file.

    Trials share their first stages for as long as the keys are equal: each shared stage runs once.

    Attributes:
        position: The place in the order, lowest first: prune 100, repair 200, finetune 300, quantize 400, measure 500.
        repeats: True for a stage that follows every pruning step if `finetune.between_steps` asks for fine-tuning
            between the steps; the other stages run after the last step only.
        scored_as: Name of the score taken after the stage's last run, the `NAME` in `accuracy_NAME`; None if it is not
            scored. Only the names of this package's own stages have a column; the last score is `accuracy`.
        is_variant: True if other trials end before this stage, so that the model before it is a result as well.
        restarts: False for a stage that must not be run again from its beginning, with smaller batches, when memory
            runs out, since other processes take part in it or it changes what the state holds; it halves its batches
            itself.
        timed_as: Name of the `seconds_` column that its time counts towards; without a column, only of the total.

    Args:
        setting: The surroundings of the trial.
        trial: The cell of the sweep.
        step: The pruning step that the stage belongs to, from 1 to `trial.steps`.
    """

    position: ClassVar[int]
    repeats: ClassVar[bool] = False
    scored_as: ClassVar[str | None] = None
    is_variant: ClassVar[bool] = False
    restarts: ClassVar[bool] = True
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
        """Return, as JSON-like values, everything the stage's result depends on, apart from the state before it.

        The data, the dense model and the draw of the calibration samples can be left out: trials that differ in them
        share nothing anyway.
        """

    @abstractmethod
    def run(self, state: TrialState) -> TrialState:
        """Return the state after the stage.

        Raises:
            CleanAIError: When the stage fails.
        """
