"""The rule for models near chance: the column `is_broken`, the risks and the recommendation all go by it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from cleanai_ray.analysis.intervals import interval_of

BROKEN_SHARE = 0.1
"""A model is near chance if it has surely kept no more than this share of the dense model's lead over chance."""


def near_chance_limit(dense: float, num_classes: int) -> float:
    """Return the accuracy up to which a pruned model is near chance.

    Chance is 1 / classes. What the dense model scores above it is what it has learned, and the margin is a tenth of
    that: one rule for 10 classes and for 1,000, and for a dense model that is itself weak. Where the dense model is no
    better than chance, the margin is zero.

    Args:
        dense: Accuracy of the dense model, in [0, 1].
        num_classes: Number of classes.
    """
    chance = 1.0 / num_classes
    return chance + BROKEN_SHARE * max(dense - chance, 0.0)


def is_near_chance(high: float, dense: float, num_classes: int) -> bool:
    """Return whether a pruned model has surely lost nearly everything that the dense model has learned.

    The upper end of the interval is compared, so that few samples do not condemn a model.

    Args:
        high: Upper end of the 95 % interval of the model's accuracy, in [0, 1].
        dense: Accuracy of the dense model, in [0, 1].
        num_classes: Number of classes.
    """
    return high <= near_chance_limit(dense, num_classes)


def is_broken(trial: Mapping[str, Any]) -> bool | None:
    """Return the column `is_broken` of a trial, computed where an older table lacks it; None where it is not known."""
    if trial["is_broken"] is not None:
        return bool(trial["is_broken"])
    accuracy, dense, num_classes = trial["accuracy"], trial["accuracy_dense"], trial["num_classes"]
    if accuracy is None or dense is None or not num_classes:
        return None
    interval = interval_of(trial)
    return is_near_chance(accuracy if interval is None else interval.high, dense, num_classes)


def is_guessing(accuracy: float, num_classes: int, num_evaluated: int | None) -> bool:
    """Return whether a dense model is hardly better than guessing; it has no other model to be measured against.

    The limit is one and a half times chance, or chance plus three standard errors where that is more.

    Args:
        accuracy: Accuracy of the dense model, in [0, 1].
        num_classes: Number of classes.
        num_evaluated: Samples that the accuracy is over; None where that is not known.
    """
    chance = 1 / num_classes
    error = math.sqrt(chance * (1 - chance) / num_evaluated) if num_evaluated else 0.0
    return accuracy <= max(1.5 * chance, chance + 3 * error)
