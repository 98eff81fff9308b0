"""The sections of a study file that `null` switches off."""

from __future__ import annotations

from typing import Any

SWITCHED_OFF: dict[str, dict[str, Any]] = {
    "repair": {"compensation": "none", "batch_norm": "none"},
    "finetune": {"epochs": 0},
}
"""What `null` stands for, by the section's key."""


def without_nulls(study: Any) -> Any:
    """Return a study document in which `repair: null` and `finetune: null` are written out."""
    if not isinstance(study, dict):
        return study
    return {**study, **{key: off for key, off in SWITCHED_OFF.items() if key in study and study[key] is None}}
