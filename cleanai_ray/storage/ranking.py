"""The order of trials: which one is the best."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def rank(row: Mapping[str, Any]) -> tuple[float, float, str]:
    """Return the sort key of a trial that succeeded, best first: higher accuracy, then fewer MACs, then the name.

    Args:
        row: Its row of results.parquet, or at least `accuracy`, `macs` and `trial_id` of it.
    """
    return (-row["accuracy"], row["macs"], row["trial_id"])
