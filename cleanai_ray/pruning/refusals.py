"""Sentences of pruning that is refused."""

from __future__ import annotations

from collections.abc import Sequence

from cleanai_ray.config.sections import PruningSection
from cleanai_ray.config.study import Trial

_MOST_NOTES = 3


def with_notes(sentence: str, notes: Sequence[str], separator: str = "; ") -> str:
    """Return a sentence, with those first that say which layers keep their width."""
    told = "; ".join(notes[:_MOST_NOTES])
    return f"{sentence}{separator}{told}" if told else sentence


def nothing_removed(trial: Trial, bounds: PruningSection) -> str:
    """Return the sentence about a trial that leaves every layer at its width."""
    amount = f"budget {trial.budget}" if trial.budget is not None else f"ratio {trial.ratio:g}"
    return (
        f"nothing would be removed: {amount} with round_to {bounds.round_to} and min_channels {bounds.min_channels} "
        "leaves every layer at its width"
    )


def collapsed(name: str, left: int, width: int, bounds: PruningSection) -> str:
    """Return the warning about a group that was cut as far as the bounds allow."""
    return (
        f"layer '{name}' collapsed to {left} of {width} channels, the least that max_ratio {bounds.max_ratio} and "
        f"min_channels {bounds.min_channels} allow"
    )
