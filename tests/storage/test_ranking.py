"""One rule ranks trials, whether they are mappings, a pyarrow table or a polars frame."""

from __future__ import annotations

import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cleanai_ray.analysis.frames import best_first
from cleanai_ray.storage.ranking import ORDER, dominates, rank

ACCURACY = st.none() | st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0])
MACS = st.none() | st.integers(1, 3)


@pytest.mark.parametrize(
    ("better", "worse"),
    [
        ({"accuracy": 0.9, "macs": 9, "trial_id": "b"}, {"accuracy": 0.8, "macs": 1, "trial_id": "a"}),
        ({"accuracy": 0.9, "macs": 1, "trial_id": "b"}, {"accuracy": 0.9, "macs": 2, "trial_id": "a"}),
        ({"accuracy": 0.9, "macs": 2, "trial_id": "b"}, {"accuracy": 0.9, "macs": None, "trial_id": "a"}),
        ({"accuracy": 0.9, "macs": 1, "trial_id": "a"}, {"accuracy": 0.9, "macs": 1, "trial_id": "b"}),
        ({"accuracy": 0.0, "macs": 1, "trial_id": "b"}, {"accuracy": None, "macs": 1, "trial_id": "a"}),
        ({"accuracy": 0.9, "macs": 1, "trial_id": "b"}, {"accuracy": 0.9, "trial_id": "a"}),
    ],
)
def test_accuracy_comes_first_then_macs_then_the_name(better: dict, worse: dict) -> None:
    assert rank(better) < rank(worse)


@given(st.lists(st.tuples(ACCURACY, MACS), min_size=1, max_size=8))
def test_mappings_tables_and_frames_are_ranked_alike(found: list[tuple[float | None, int | None]]) -> None:
    rows = [
        {"accuracy": accuracy, "macs": macs, "trial_id": f"t{place}"} for place, (accuracy, macs) in enumerate(found)
    ]
    expected = [row["trial_id"] for row in sorted(rows, key=rank)]
    schema = pa.schema([("accuracy", pa.float64()), ("macs", pa.int64()), ("trial_id", pa.string())])
    table = pa.Table.from_pylist(rows[::-1], schema=schema)
    assert table.sort_by(list(ORDER))["trial_id"].to_pylist() == expected
    assert best_first(pl.DataFrame(pl.from_arrow(table)))["trial_id"].to_list() == expected


TRIAL = st.fixed_dictionaries(
    {"trial_id": st.sampled_from("abcd"), "accuracy": ACCURACY, "macs": MACS, "accuracy_validation": ACCURACY}
)


@given(st.lists(TRIAL, min_size=1, max_size=6, unique_by=lambda row: row["trial_id"]))
def test_a_trial_that_no_other_dominates_is_left_of_any_trials(rows: list[dict]) -> None:
    assert any(not any(dominates(other, row) for other in rows) for row in rows)


def test_a_trial_dominates_by_the_images_that_decide() -> None:
    one = {"trial_id": "b", "accuracy": 0.9, "macs": 2}
    assert dominates(one, {"trial_id": "a", "accuracy": 0.8, "macs": 2})
    assert not dominates(one, {"trial_id": "a", "accuracy": 0.8, "macs": 1})
    assert not dominates(one, {"trial_id": "a", "accuracy": 0.8, "macs": 2, "accuracy_validation": 0.95})
    assert dominates(one, {"trial_id": "c", "accuracy": 0.9, "macs": 2})
    assert not dominates(one, {"trial_id": "a", "accuracy": 0.9, "macs": 2})
    assert not dominates(one, {"trial_id": "a", "accuracy": 0.8, "macs": None})
