"""What a trial's model scores after each stage, and how it compares with the dense model after the last."""

from __future__ import annotations

from typing import Any

from torch import nn

from cleanai_ray.evaluation.accuracy import Accuracy, evaluate
from cleanai_ray.evaluation.comparison import Comparison, compare
from cleanai_ray.evaluation.remembered import RememberedModel
from cleanai_ray.trial_clock import TrialClock
from cleanai_ray.trial_columns import accuracy_columns, comparison_columns
from cleanai_ray.workspace import Workspace


class TrialScores:
    """Scores a trial's model after each stage that runs: `pruned`, `repaired`, `finetuned` and `quantized`.

    After the last one the dense model is run beside it, on the same batches, which are read and decoded once; on the
    CPU a worker's next trials find the dense model's answers remembered.

    Args:
        workspace: The opened study, which says what stages there are.
        dense: The dense model on the workspace's device; it is not changed.
        clock: Told of the time.
        is_quantized: Whether the trial has the stage `quantized`.
    """

    def __init__(self, workspace: Workspace, dense: nn.Module, clock: TrialClock, is_quantized: bool = False) -> None:
        study = workspace.study
        ahead = {"pruned": True, "repaired": study.repair.is_on, "finetuned": study.finetune.epochs > 0}
        self._last = [name for name, runs in {**ahead, "quantized": is_quantized}.items() if runs][-1]
        self._workspace = workspace
        self._dense = RememberedModel(dense)
        self._clock = clock
        self._scores: dict[str, Accuracy] = {}
        self._comparison: Comparison | None = None

    def add(self, stage: str, model: nn.Module) -> None:
        """Score the model after a stage."""
        batches, device = self._workspace.batches("evaluation"), self._workspace.device
        with self._clock.stage("evaluate"):
            if stage == self._last:
                self._scores[stage], self._comparison = compare(self._dense, model, batches, device=device)
            else:
                self._scores[stage] = evaluate(model, batches, device=device)

    @property
    def comparison(self) -> Comparison:
        """The model after the last stage beside the dense one."""
        assert self._comparison is not None, f"stage {self._last} has not been scored"
        return self._comparison

    def columns(self, dense: Accuracy) -> dict[str, Any]:
        """Return the columns of results.parquet about accuracy, given what the dense model scores."""
        classes = self._workspace.study.model.num_classes
        return {**accuracy_columns(dense, self._scores), **comparison_columns(self.comparison, classes)}
