"""The trials that a run takes as they are: those that are complete and have the models that the study keeps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cleanai_ray.config.study import Study
from cleanai_ray.stages.fingerprints import trial_key
from cleanai_ray.storage.ranking import dominates
from cleanai_ray.storage.run_directory import PLAN_FILE, RunDirectory


def record_name(trial_id: str) -> str:
    """Return the file that holds a trial's record."""
    return f"trials/{trial_id}.json"


def model_folder(trial_id: str) -> str:
    """Return the folder that holds a trial's pruned model."""
    return f"models/{trial_id}"


def lacks_model(rows: Sequence[dict[str, Any]], save_models: str, run: RunDirectory) -> set[str]:
    """Return the ids of complete trials whose model should be in the run directory but is missing.

    With `front`, these are pruned models that no other one beats in accuracy and MACs. Which trial is `best` is known
    once all are complete: `executors.chosen_model` sees to its model.

    Args:
        rows: The rows of all complete trials.
        save_models: `output.save_models` of the study.
        run: The run directory.
    """
    if save_models not in ("all", "front"):
        return set()
    missing = [row for row in rows if not run.exists(f"{model_folder(row['trial_id'])}/{PLAN_FILE}")]
    if save_models == "all":
        return {row["trial_id"] for row in missing}
    pruned = [row for row in rows if not row.get("control")]
    front = (row for row in missing if not (row.get("control") or any(dominates(other, row) for other in pruned)))
    return {row["trial_id"] for row in front}


def completed_records(study: Study, run: RunDirectory, dense_digest: str) -> dict[str, dict[str, Any]]:
    """Return the records of the trials that are complete for these inputs and have the models they should have."""
    records = {}
    for trial in study.trials():
        name = record_name(trial.trial_id)
        if run.is_complete(name, trial_key(study, trial, dense_digest)):
            records[trial.trial_id] = run.read_json(name)
    rows = [record["row"] for record in records.values()]
    for trial_id in lacks_model(rows, study.output.save_models, run):
        del records[trial_id]
    return records
