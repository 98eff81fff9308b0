"""The one rule by which trials are ranked: the most accurate first, then fewer MACs, then by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

ORDER = (("accuracy", "descending"), ("macs", "ascending"), ("trial_id", "ascending"))
"""The rule as `pyarrow.Table.sort_by` takes it; a value that is missing comes last."""


def rank(row: Mapping[str, Any]) -> tuple[float, float, str]:
    """Return the sort key of a trial, so that the best of several has the smallest key.

    Args:
        row: A trial with `trial_id`, and with `accuracy` and `macs` where they are known.
    """
    accuracy, macs = row.get("accuracy"), row.get("macs")
    infinity = float("inf")
    return (infinity if accuracy is None else -accuracy, infinity if macs is None else macs, row["trial_id"])


def dominates(row: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Return whether a trial is at least as accurate as another one with at most its MACs.

    Of trials that are equal in both, the first by name dominates. The accuracy is that on the images that decide where
    it is known; a trial whose MACs are not known dominates none.

    Args:
        row: A trial with `trial_id`, `accuracy` and `macs`, and `accuracy_validation` where it is known.
        other: Likewise.
    """
    own, its = (_deciding(one) for one in (row, other))
    macs, its_macs = row.get("macs"), other.get("macs")
    if own is None or its is None or macs is None or its_macs is None or row["trial_id"] == other["trial_id"]:
        return False
    is_equal = (own, macs) == (its, its_macs)
    return own >= its and macs <= its_macs and (not is_equal or row["trial_id"] < other["trial_id"])


def _deciding(row: Mapping[str, Any]) -> float | None:
    found = row.get("accuracy_validation")
    return row.get("accuracy") if found is None else found
