"""One rule says which models are near chance, and neither table nor risk nor recommendation can say otherwise."""

from __future__ import annotations

import polars as pl
import pytest
from report.tables import study_of

from cleanai_ray.analysis.frames import StudyFrames
from cleanai_ray.analysis.intervals import wilson
from cleanai_ray.analysis.near_chance import is_broken, is_guessing, is_near_chance, near_chance_limit
from cleanai_ray.analysis.recommendation import recommend
from cleanai_ray.analysis.risks import find_risks


@pytest.mark.parametrize(
    ("hits", "num", "dense", "classes", "broken"),
    [
        (1000, 10000, 0.93, 10, True),  # a constant answer: 0.106 <= 0.1 + 0.083
        (10, 100, 0.93, 10, True),  # the same on 100 images: 0.174
        (2, 10, 0.93, 10, False),  # on ten images nobody knows
        (2500, 10000, 0.93, 10, False),  # bad, but it has learned something
        (50, 50000, 0.76, 1000, True),
        (5000, 50000, 0.76, 1000, False),  # a hundred times chance
        (500, 1000, 0.95, 2, True),  # 0.531 <= 0.5 + 0.045
        (600, 1000, 0.95, 2, False),
        (100, 1000, 0.1, 10, False),  # the dense model knows nothing, either: there was nothing to break
    ],
)
def test_near_chance(hits: int, num: int, dense: float, classes: int, broken: bool) -> None:
    assert is_near_chance(wilson(hits, num).high, dense, classes) is broken
    # The table's own column, or numbers alone: the report judges both alike.
    trial = {"accuracy": hits / num, "accuracy_dense": dense, "num_classes": classes, "num_evaluated": num}
    assert is_broken({**trial, "is_broken": None}) is broken


def test_the_limit_is_chance_and_a_tenth_of_what_dense_has_learned() -> None:
    assert near_chance_limit(0.9, 10) == pytest.approx(0.1 + 0.08)
    assert near_chance_limit(0.05, 10) == pytest.approx(0.1)


def test_a_dense_model_guesses_up_to_half_as_much_again_or_three_standard_errors() -> None:
    assert is_guessing(0.1499, 10, 10000)
    assert not is_guessing(0.1501, 10, 10000)
    limit = 0.1 + 3 * (0.1 * 0.9 / 25) ** 0.5
    assert is_guessing(limit - 1e-6, 10, 25)
    assert not is_guessing(limit + 1e-6, 10, 25)
    assert is_guessing(0.00149, 1000, None)
    assert not is_guessing(0.00151, 1000, None)


ACCURACY = {"wanda": 91.0, "magnitude": 17.0, "random": 12.0}


def study(**columns: object) -> StudyFrames:
    """Trials whose dense model has 93 %: up to 18.3 % is near chance."""
    found = study_of(lambda label, *_: ACCURACY[label], labels=tuple(ACCURACY), ratios=(0.3,), modes=("local",))
    own = [pl.lit(value, dtype=pl.Boolean).alias(name) for name, value in columns.items()]
    return StudyFrames(**{**vars(found), "results": found.results.with_columns(own)})


def named(frames: StudyFrames) -> set[str]:
    """The methods of the trials that the risk lists."""
    lines = [line for risk in find_risks(frames) if risk.kind == "near chance" for line in risk.details]
    return {line.partition("-")[0] for line in lines}


@pytest.mark.parametrize(
    ("column", "expected"), [(None, {"magnitude", "random"}), (True, set(ACCURACY)), (False, set())]
)
def test_the_risk_lists_the_trials_that_the_table_calls_broken(column: bool | None, expected: set[str]) -> None:
    frames = study(is_broken=column)
    assert named(frames) == expected
    blocking = [risk for risk in find_risks(frames) if risk.kind == "near chance" and risk.is_blocking]
    assert bool(blocking) == (expected == set(ACCURACY))


def test_a_broken_trial_is_never_recommended() -> None:
    assert recommend(study(is_broken=True)).trial is None
    found = recommend(study(is_broken=False)).trial
    assert found is not None
    assert found["method"] == "wanda"
