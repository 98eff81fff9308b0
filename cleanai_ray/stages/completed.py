"""The trials that a run takes as they are: those that are complete and have the models that the study keeps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cleanai_ray.config.study import Study, Trial
from cleanai_ray.stages.fingerprints import block_choice_key, trial_key
from cleanai_ray.storage import schemas
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
    """Return the records of the trials that are complete for these inputs and have the models they should have.

    A trial that lost other blocks than are now chosen for its budget is not complete.
    """
    records = {}
    for trial in study.trials():
        name = record_name(trial.trial_id)
        if run.is_complete(name, trial_key(study, trial, dense_digest)):
            record = run.read_json(name)
            if not _has_other_blocks(study, run, dense_digest, trial, record["row"]):
                records[trial.trial_id] = record
    rows = [record["row"] for record in records.values()]
    for trial_id in lacks_model(rows, study.output.save_models, run):
        del records[trial_id]
    return records


def _has_other_blocks(study: Study, run: RunDirectory, dense_digest: str, trial: Trial, row: dict[str, Any]) -> bool:
    """Return whether a trial succeeded without other blocks than those that its budget is known to be spent on."""
    budget, full_depth = trial.budget, trial.control is not None and trial.control.kind != "scratch"
    if study.pruning.remove_blocks != "auto" or budget is None or full_depth or row["status"] != schemas.OK:
        return False
    if budget not in study.sweep.budgets:
        return False
    from cleanai_ray.stages.blocks import choice_file  # load torch, which the writer's process does without
    from cleanai_ray.stages.dense_measures import measures_folder

    draw = study.draw_of(trial)
    file = choice_file(measures_folder(study, draw), budget)
    if not run.is_complete(file, block_choice_key(study.of_draw(draw), dense_digest, budget)):
        return False
    return bool((row["removed_blocks"] or []) != run.read_json(file)["names"])
