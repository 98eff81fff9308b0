"""Groups of trials as configurations of Ray Tune, and the numbers that are reported to Tune."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cleanai_ray.config.study import Trial
from cleanai_ray.executors.trial_work import TrialGroup

_REPORTED = ("accuracy", "accuracy_pruned", "loss", "params", "macs", "seconds_total")


def config_of(group: TrialGroup) -> dict[str, Any]:
    """Return a group as plain values; a configuration of Tune holds it under the key `trials`."""
    trials = [trial.model_dump(mode="json") for trial in group.trials]
    return {"owner": group.owner.model_dump(mode="json"), "trials": trials}


def group_of(config: Mapping[str, Any]) -> TrialGroup:
    """Return the group in a configuration of Tune; the inverse of `config_of`."""
    found = config["trials"]
    trials = tuple(Trial.model_validate(trial) for trial in found["trials"])
    return TrialGroup(owner=Trial.model_validate(found["owner"]), trials=trials)


def numbers_of(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values to report to Tune at the end of a trial, from its row of results.parquet."""
    numbers = {name: row[name] for name in _REPORTED if row.get(name) is not None}
    return {"name": row["trial_id"], "status": row["status"], **numbers}


def epoch_numbers(row: Mapping[str, Any]) -> dict[str, float]:
    """Return the values to report to Tune at the end of an epoch, from its row of history.parquet."""
    return {key: value for key, value in row.items() if isinstance(value, (int, float))}
