"""The learning rate of every step."""

from __future__ import annotations

import math

from cleanai_ray.config.finetune import FineTuneSection

_STEP_FACTOR = 0.1
_STEP_MILESTONES = (0.5, 0.75)


def learning_rate_at(section: FineTuneSection, step: int, steps_per_epoch: int) -> float:
    """Return the learning rate of a step.

    Over the first `warmup_epochs` the rate rises linearly to its peak, which it has at the last warm-up step. Then
    `cosine` falls to zero along half a cosine over the steps that are left, `step` multiplies by 0.1 at 50 % and at
    75 % of all steps, and `constant` stays.

    Args:
        section: Peak learning rate, scheduler, warm-up and epochs.
        step: Index of the optimizer step, from 0.
        steps_per_epoch: Optimizer steps an epoch.
    """
    total = section.epochs * steps_per_epoch
    warmup = round(section.warmup_epochs * steps_per_epoch)
    if step < warmup:
        return section.learning_rate * (step + 1) / warmup
    if section.scheduler == "cosine":
        progress = (step - warmup) / max(1, total - warmup)
        return section.learning_rate * 0.5 * (1.0 + math.cos(math.pi * progress))
    if section.scheduler == "step":
        passed = sum(step >= milestone * total for milestone in _STEP_MILESTONES)
        return section.learning_rate * _STEP_FACTOR**passed
    return section.learning_rate
