"""The multiple of widths that a target likes, measured on small convolutions."""

from __future__ import annotations

from functools import lru_cache
from itertools import pairwise

import torch
from torch import nn

from cleanai_ray.config.evaluation import LatencySection
from cleanai_ray.config.sections import USUAL_MULTIPLE
from cleanai_ray.config.target import TargetSection
from cleanai_ray.errors import EvaluationError
from cleanai_ray.profile.clock import Clock, TargetClock

MULTIPLES = (8, 16, 32, 64)
_WIDTHS = (128, 192, 320)
"""Multiples of 64, of which narrower widths are compared with."""
_LEAST_SHARE = 0.5
_CHANNELS, _SIZE = 3, 14
_RUNS = 40


def measure_multiple(clock: Clock) -> int:
    """Return the least multiple by which it pays to narrow a layer: 8, 16, 32 or 64.

    Convolutions of 3 x 3 with 128, 192 and 320 channels, all multiples of 64, are timed beside ones that are narrower
    by 8, 16, 32 and 64 channels. A multiple pays if narrowing by one of it saves, on average over the three, at least
    half of the time that the multiply-accumulates say. Hardware that computes whole tiles takes as long for a part of
    one, so multiples below its tile save nothing.

    Args:
        clock: Times models; the whole measurement takes a few seconds.
    """
    shares = dict.fromkeys(MULTIPLES, 0.0)
    for width in _WIDTHS:
        models = {"dense": probe(width), **{str(multiple): probe(width - multiple) for multiple in MULTIPLES}}
        times = clock.time_models(models)
        for multiple in MULTIPLES:
            promised = 1.0 - work(width - multiple) / work(width)
            saved = 1.0 - times[str(multiple)].fast / times["dense"].fast
            shares[multiple] += saved / promised / len(_WIDTHS)
    return next((multiple for multiple in MULTIPLES if shares[multiple] >= _LEAST_SHARE), MULTIPLES[-1])


def probe(width: int) -> nn.Module:
    """Return convolutions that are timed, with a number of channels between them."""
    sizes = (_CHANNELS, width, width, width)
    pairs = pairwise(sizes)
    return nn.Sequential(*(nn.Conv2d(before, after, 3, padding=1) for before, after in pairs)).eval()


def work(width: int) -> int:
    """Return the multiply-accumulates of a probe, for each position of the image and of the kernel."""
    return _CHANNELS * width + 2 * width * width


def multiple_in(target: TargetSection, device: torch.device | str) -> int:
    """Return the multiple that a target likes: the one it names, or the measured one; 8 where it cannot be measured.

    A process measures a target once.

    Args:
        target: The target.
        device: The study's device.
    """
    return target.multiple or _measured(target, str(device))


@lru_cache
def _measured(target: TargetSection, device: str) -> int:
    clock = TargetClock(target, LatencySection(runs=_RUNS), torch.zeros(1, _CHANNELS, _SIZE, _SIZE), device)
    try:
        return measure_multiple(clock)
    except EvaluationError:
        return USUAL_MULTIPLE
