"""The stage `measure`: size, MACs and latency of the final model and of the dense one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from cleanai_ray.config.study import Study, Trial
from cleanai_ray.deploy import timing_of
from cleanai_ray.evaluation.latency import measure_latency
from cleanai_ray.nn.copying import copied
from cleanai_ray.registry import STAGES
from cleanai_ray.stages.base import Stage
from cleanai_ray.stages.columns import cost_columns, latency_columns
from cleanai_ray.stages.state import TrialState


@STAGES.register("measure")
class Measure(Stage):
    """Count the final model's parameters and MACs, and time it in the back ends that can run it."""

    position = 500
    timed_as = "evaluate"

    @classmethod
    def key(cls, study: Study, trial: Trial) -> Any:
        """Return the study's latency section, and the quantisation, which decides what runs the model.

        The section does not count for a study with a target, whose models are timed after the sweep.
        """
        latency = None if study.evaluation.target else study.evaluation.latency
        return [latency and latency.model_dump(mode="json"), trial.quantization]

    def run(self, state: TrialState) -> TrialState:
        """Return the state with costs and rows of latency.parquet."""
        workspace, dense = self.setting.workspace, self.setting.dense_model
        section, device, example = workspace.study.evaluation.latency, workspace.device, workspace.example_input()
        costs = cost_columns(dense, state.model, example, state.quantized)
        if section is None or workspace.study.evaluation.target is not None:  # timed alone, after the sweep
            return replace(state, costs=costs)
        backend = "eager"
        if self.trial.quantization == "int8":
            # onnxruntime runs int8 on the CPU, whatever the study's device; the original dense model is not moved.
            backend, dense, device = "onnxruntime", copied(dense), torch.device("cpu")
        timing = timing_of(self.trial.quantization, section)
        rows = measure_latency({"dense": dense, "pruned": state.final_model}, example, timing, device=device)
        return replace(state, latency=tuple(rows), costs={**costs, **latency_columns(rows, backend)})
