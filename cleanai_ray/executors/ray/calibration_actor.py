"""A calibration worker as a Ray actor."""

from __future__ import annotations

from typing import Any

from cleanai_ray.executors.calibration_worker import CalibrationWorker
from cleanai_ray.executors.ray.cluster import assigned_device
from cleanai_ray.executors.ray.fresh_process import device_faults_named
from cleanai_ray.executors.writer import RunStore
from cleanai_ray.stages.blocks import BareWeights


class CalibrationActor(CalibrationWorker):
    """A calibration worker on the device that Ray assigns to it.

    Args:
        study_json: The study.
        store: The run directory.
        cpus: CPU cores that it may use.
    """

    def __init__(self, study_json: str, store: RunStore, cpus: float) -> None:
        super().__init__(study_json, store, assigned_device(cpus))

    def compute(
        self, call: str, shard: int, name: str, inputs: str, weights: bytes | BareWeights, *arguments: Any
    ) -> tuple[int, bytes]:
        """See `CalibrationWorker.compute`; a fault of the GPU is a DeviceError, after which the actor is replaced."""
        with device_faults_named():
            return super().compute(call, shard, name, inputs, weights, *arguments)

    def ready(self) -> None:
        """Do nothing; the call returns once the actor has started."""
