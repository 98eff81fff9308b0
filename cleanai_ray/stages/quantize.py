"""The stage `quantize`: post-training quantisation with calibration images."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from cleanai_ray.config.study import Study, Trial
from cleanai_ray.deploy import quantize
from cleanai_ray.registry import STAGES
from cleanai_ray.stages.base import Stage
from cleanai_ray.stages.state import TrialState


@STAGES.register("quantize")
class Quantize(Stage):
    """Quantise the model after the last stage that changed its weights; the float model is kept as well."""

    position = 400
    scored_as = "quantized"
    is_variant = True
    timed_as = "quantize"

    @classmethod
    def applies(cls, study: Study, trial: Trial, step: int) -> bool:
        """Return whether the trial asks for a quantisation."""
        return trial.quantization != "none"

    @classmethod
    def key(cls, study: Study, trial: Trial) -> Any:
        """Return the quantisation."""
        return trial.quantization

    def run(self, state: TrialState) -> TrialState:
        """Return the state with the quantised model."""
        workspace = self.setting.workspace
        batches = workspace.batches("calibration")
        return replace(
            state, quantized=quantize(self.trial.quantization, state.model, workspace.example_input(), batches)
        )
