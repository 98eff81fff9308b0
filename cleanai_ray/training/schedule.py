"""The learning rate of every step, by `torch.optim.lr_scheduler`."""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.optim.lr_scheduler import ConstantLR, CosineAnnealingLR, LinearLR, LRScheduler, MultiStepLR, SequentialLR

from cleanai_ray.config.finetune import FineTuneSection

_STEP_FACTOR = 0.1
_STEP_MILESTONES = (0.5, 0.75)


def learning_rates(section: FineTuneSection, steps_per_epoch: int) -> list[float]:
    """Return the learning rate of every step of a training, from the first to the last.

    Over the first `warmup_epochs` the rate rises linearly to its peak, which it reaches at the last warm-up step. Then
    `cosine` falls to zero along half a cosine over the remaining steps, `step` multiplies by 0.1 at 50 % and at 75 % of
    all steps, and `constant` stays.

    They are computed before training starts, on an optimizer that nothing else uses: a resumed training then needs no
    state of the schedule, and the schedule also advances where the gradient scaler skips a step.

    Args:
        section: Peak learning rate, scheduler, warm-up and epochs.
        steps_per_epoch: Optimizer steps an epoch.
    """
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=section.learning_rate)
    schedule = _schedule(optimizer, section, steps_per_epoch)
    rates = []
    for _ in range(section.epochs * steps_per_epoch):
        rates.append(float(optimizer.param_groups[0]["lr"]))
        optimizer.step()
        schedule.step()
    return rates


def _schedule(optimizer: torch.optim.Optimizer, section: FineTuneSection, steps_per_epoch: int) -> LRScheduler:
    total = section.epochs * steps_per_epoch
    warmup = round(section.warmup_epochs * steps_per_epoch)
    main = _after_warmup(optimizer, section, total, warmup)
    if warmup < 2:  # a single warm-up step already has the peak rate
        return SequentialLR(optimizer, [ConstantLR(optimizer, 1.0), main], [1]) if warmup else main
    rising = LinearLR(optimizer, start_factor=1.0 / warmup, total_iters=warmup - 1)
    return SequentialLR(optimizer, [rising, main], [warmup])


def _after_warmup(optimizer: torch.optim.Optimizer, section: FineTuneSection, total: int, warmup: int) -> LRScheduler:
    """Return the schedule of the steps after the warm-up; it counts them from 0."""
    if section.scheduler == "cosine":
        return CosineAnnealingLR(optimizer, max(1, total - warmup))
    if section.scheduler == "step":
        return MultiStepLR(optimizer, [math.ceil(part * total) - warmup for part in _STEP_MILESTONES], _STEP_FACTOR)
    return ConstantLR(optimizer, 1.0)
