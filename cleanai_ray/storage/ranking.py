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
