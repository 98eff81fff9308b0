"""The names of trials in sentences."""

from __future__ import annotations

from typing import Any


def describe_trial(trial: dict[str, Any]) -> str:
    """Write a trial in words: `taylor (ratio 0.3, local)`."""
    details = [trial["amount"], trial["mode"]]
    details += [f"{trial['steps']} steps"] if (trial.get("steps") or 1) > 1 else []
    return f"{trial['label']} ({', '.join(details)})"
