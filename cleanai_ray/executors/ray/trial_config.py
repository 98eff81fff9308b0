"""Groups of trials as configurations of Ray Tune, and the numbers that are reported to Tune."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cleanai_ray.config.study import Study, Trial
from cleanai_ray.executors.placement import shared_out
from cleanai_ray.executors.trial_work import TrialGroup

_REPORTED = ("accuracy", "accuracy_pruned", "score", "loss", "params", "macs", "seconds_total")
_NAMED = ("control", "metric")


def config_of(group: TrialGroup) -> dict[str, Any]:
    """Return a group as plain values; a configuration of Tune holds it under the key `trials`."""
    trials = [trial.model_dump(mode="json") for trial in group.trials]
    return {"owner": group.owner.model_dump(mode="json"), "trials": trials}


def configurations(study: Study, groups: Sequence[TrialGroup], num_places: int) -> list[dict[str, Any]]:
    """Return the configuration of each group; the last ones may say that they share out all places of the cluster.

    Args:
        study: The study, with numbers in place of `auto` in its resources.
        groups: The groups.
        num_places: Workers that the cluster has room for at a time.
    """
    found = [config_of(group) for group in groups]
    # Workers cannot share a GPU, and a place without one is no GPU that idles.
    if study.finetune.num_workers == "auto" and study.most_workers_per_trial > 1 and study.resources.gpus >= 1:
        last = len(groups) % max(1, num_places)
        for number, workers in enumerate(shared_out(num_places, last)):
            if workers > 1:
                found[len(groups) - last + number]["share"] = [number, last]
    return found


def takes_workers(study: Study, config: Mapping[str, Any]) -> bool:
    """Return whether a group of trials runs on workers that its Tune worker waits for."""
    return study.workers_per_trial > 1 or "share" in config["trials"]


def workers_wanted(study: Study, config: Mapping[str, Any], num_places: int) -> int:
    """Return the workers for a group: the study's number, or its share of the places that the cluster has now."""
    if "share" not in config["trials"]:
        return study.workers_per_trial
    number, last = config["trials"]["share"]
    return min(study.most_workers_per_trial, shared_out(num_places, last)[number])


def group_of(config: Mapping[str, Any]) -> TrialGroup:
    """Return the group in a configuration of Tune; the inverse of `config_of`."""
    found = config["trials"]
    trials = tuple(Trial.model_validate(trial) for trial in found["trials"])
    return TrialGroup(owner=Trial.model_validate(found["owner"]), trials=trials)


def numbers_of(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values to report to Tune at the end of a trial, from its row of results.parquet."""
    numbers = {name: row[name] for name in (*_REPORTED, *_NAMED) if row.get(name) is not None}
    return {"name": row["trial_id"], "status": row["status"], **numbers}


def epoch_numbers(row: Mapping[str, Any]) -> dict[str, float]:
    """Return the values to report to Tune at the end of an epoch, from its row of history.parquet.

    Of a name, what stands in brackets is left out, which trackers do not take.
    """
    return {key.partition(" (")[0]: value for key, value in row.items() if isinstance(value, (int, float))}
