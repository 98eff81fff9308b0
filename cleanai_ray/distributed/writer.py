"""The one process that writes trials into the run directory: an actor on the driver's node.

Workers send it what they made, so that a run directory on the head's own disk works on any cluster. A trial's model
comes before its record, and the record's completion marker last.
"""

from __future__ import annotations

from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cleanai_ray import results
from cleanai_ray.api import PLAN_FILE, WEIGHTS_FILE
from cleanai_ray.artifacts import RunDirectory

Record = dict[str, Any]


def record_name(trial_id: str) -> str:
    """Return the file that holds a trial's record."""
    return f"trials/{trial_id}.json"


def model_folder(trial_id: str) -> str:
    """Return the folder that holds a trial's pruned model."""
    return f"models/{trial_id}"


def rank(row: dict[str, Any]) -> tuple[float, float, str]:
    """Return the sort key of trials, best first: accuracy, then fewer MACs, then the name."""
    return (-row["accuracy"], row["macs"], row["trial_id"])


def lacks_model(rows: list[dict[str, Any]], save_models: str, run: RunDirectory) -> set[str]:
    """Return the trials among complete ones whose model is to be kept and is not there."""
    wanted = {"none": [], "best": sorted(rows, key=rank)[:1], "all": rows}[save_models]
    return {row["trial_id"] for row in wanted if not run.exists(f"{model_folder(row['trial_id'])}/{PLAN_FILE}")}


class RunWriter:
    """Writes records and models, and keeps those models that the study asks for.

    Args:
        location: The run directory.
        save_models: `none`, `best` or `all`.
        completed: Rows of the trials that are complete already.
    """

    def __init__(self, location: str, save_models: str, completed: list[dict[str, Any]]) -> None:
        self._run = RunDirectory(location)
        self._save_models = save_models
        self._saved = {row["trial_id"]: row for row in completed if self._run.exists(model_folder(row["trial_id"]))}
        for trial_id in self._run.list("models"):
            if trial_id not in self._saved:  # Of another study, or of other inputs: not what the tables will say.
                self._run.delete(model_folder(trial_id))

    def wants_model(self, row: dict[str, Any]) -> bool:
        """Whether the model of a trial is to be sent."""
        if self._save_models == "best":
            return all(rank(row) < rank(other) for other in self._saved.values())
        return self._save_models == "all"

    def write(self, record: Record, inputs: str, plan: str | None, weights: bytes | None) -> None:
        """Write a trial: its model if it comes with one, its record, and the marker of a trial that succeeded."""
        row = record["row"]
        trial_id = row["trial_id"]
        if plan is not None and weights is not None and self.wants_model(row):
            folder = model_folder(trial_id)
            self._run.write_bytes(f"{folder}/{WEIGHTS_FILE}", weights)
            self._run.write_text(f"{folder}/{PLAN_FILE}", plan)
            self._saved[trial_id] = row
        self._run.write_json(record_name(trial_id), record)
        if row["status"] == results.OK:
            self._run.mark(record_name(trial_id), inputs)
        if self._save_models == "best":
            self._keep_best()

    def _keep_best(self) -> None:
        for trial_id in sorted(self._saved, key=lambda name: rank(self._saved[name]))[1:]:
            self._run.delete(model_folder(trial_id))
            del self._saved[trial_id]


def start_writer(location: str, save_models: str, completed: list[dict[str, Any]], node_id: str) -> Any:
    """Start the writer on a node, and return its handle."""
    placement = NodeAffinitySchedulingStrategy(node_id=node_id, soft=False)
    actor = ray.remote(RunWriter).options(num_cpus=0, scheduling_strategy=placement)
    return actor.remote(location, save_models, completed)
