"""Scores of other tasks than classification are told by their names: to the progress on Ray, and to trackers."""

from __future__ import annotations

from typing import Any, ClassVar

import small_study as small

from cleanai_ray.config.study import parse_study
from cleanai_ray.executors.counts import SweepState
from cleanai_ray.executors.ray.sweep import _ProgressCallback
from cleanai_ray.executors.ray.tracking import numbers_in
from cleanai_ray.executors.ray.trial_config import config_of, epoch_numbers, numbers_of
from cleanai_ray.executors.trial_work import TrialGroup

TRIAL = parse_study(small.SMALL).trials()[0]


class TuneTrial:
    """A trial of Tune, as far as its callbacks ask."""

    config: ClassVar = {"trials": config_of(TrialGroup(owner=TRIAL, trials=(TRIAL,)))}


def row_of(metric: str, score: float | None) -> dict[str, Any]:
    """A row of results.parquet, as far as Tune is told of it."""
    scores = {"metric": metric, "score": score, "accuracy": 0.125, "accuracy_pruned": 0.0625}
    costs = {"loss": 2.0, "params": 5, "macs": 7, "seconds_total": 1.0}
    return {"trial_id": TRIAL.trial_id, "status": "ok", **scores, **costs}


def test_progress_on_ray_names_the_score() -> None:
    state = SweepState(total=2, workers=1)
    callback = _ProgressCallback(state, lambda: None)
    callback.on_trial_result(0, [], TuneTrial(), numbers_of(row_of("perplexity", 8.0)))
    assert (state.done, state.best) == (1, TRIAL.trial_id)
    assert f"best perplexity 8 on all scored samples ({TRIAL.trial_id})" in state.describe()
    state = SweepState(total=2, workers=1)
    _ProgressCallback(state, lambda: None).on_trial_result(0, [], TuneTrial(), numbers_of(row_of("accuracy", None)))
    assert f"best 12.50% on all scored images ({TRIAL.trial_id})" in state.describe()


def test_trackers_are_told_a_score_by_its_name() -> None:
    costs = {"loss": 2.0, "params": 5, "macs": 7, "seconds_total": 1.0}
    merits = {"merit": 0.125, "merit_pruned": 0.0625}
    assert numbers_in(numbers_of(row_of("perplexity", 8.0))) == {"perplexity": 8.0, **merits, **costs}
    assert numbers_in(numbers_of(row_of("wer (lower is better)", 3.0))) == {"wer": 3.0, **merits, **costs}
    plain = numbers_in(numbers_of(row_of("accuracy", None)))
    assert plain == {"accuracy": 0.125, "accuracy_pruned": 0.0625, **costs}
    epoch = {"epoch": 1, "validation_wer (lower is better)": 3.0, "validation_merit": 0.25, "is_best": True}
    assert epoch_numbers(epoch) == {"epoch": 1, "validation_wer": 3.0, "validation_merit": 0.25, "is_best": True}
