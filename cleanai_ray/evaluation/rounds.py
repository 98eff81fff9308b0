"""Timing of several models in turns, and what their times say together."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from cleanai_ray.evaluation.significance import median_interval

DENSE = "dense"

_MILLISECONDS_THAT_HIDE_A_COLD_CACHE = 50.0
_MOST_TIMES_AS_MANY = 20


@dataclass(frozen=True, kw_only=True)
class Timing:
    """The times of one model among those that it was timed with.

    Attributes:
        p50: Its typical time: what is left of the medians when each round's own pace is taken out.
        p90: 90th percentile of its times as they were taken, at least `p50`.
        p99: 99th percentile, likewise; with few rounds it is close to the slowest.
        fast: Its time when nothing disturbed it: the 20th percentile of its times as they were taken.
        speedup: The dense model's `p50` over its own; None for the dense model, and where that was not timed.
        speedup_low: Lower end of its 95 % interval, by the bootstrap over rounds; with two models or more.
        speedup_high: Upper end, likewise.
        num_rounds: Rounds in which it was timed.
    """

    p50: float
    p90: float
    p99: float
    fast: float
    speedup: float | None = None
    speedup_low: float | None = None
    speedup_high: float | None = None
    num_rounds: int = 1


def take_turns(
    timers: Mapping[str, Callable[[], float]], *, warmup: int, runs: int, least_ms: float = 0.0
) -> dict[str, list[float]]:
    """Time every model once a round, in an order that changes every round.

    Whoever runs next finds the caches full of another model's weights, which costs a small model a tenth of its time,
    and which it would not find in use. So a model whose pass takes less than 50 ms runs once before the pass that
    counts; a longer one hides what the cache costs.

    The order is reversed every round. With more than two models, it is rotated after every second round, so that each
    model comes first, and last, equally often.

    Args:
        timers: For each model, a function that runs it once and returns the milliseconds that it took.
        warmup: Rounds whose times are dropped.
        runs: Rounds whose times are kept, at least.
        least_ms: Milliseconds that the passes of these rounds take at least: a machine that is shared keeps its pace
            for some seconds. There are further rounds until then, but at most twenty times as many.

    Returns:
        The milliseconds [rounds] of each model.
    """
    last = dict.fromkeys(timers, 0.0)
    times: dict[str, list[float]] = {name: [] for name in timers}
    names = list(timers)
    spent = 0.0
    for index in itertools.count():
        if index >= warmup + runs and (spent >= least_ms or index >= warmup + _MOST_TIMES_AS_MANY * runs):
            break
        first = index // 2 % len(names) if len(names) > 2 else 0
        order = names[first:] + names[:first]
        for name in order if index % 2 == 0 else reversed(order):
            if last[name] < _MILLISECONDS_THAT_HIDE_A_COLD_CACHE:
                timers[name]()
            last[name] = timers[name]()
            if index >= warmup:
                times[name].append(last[name])
                spent += last[name]
    return times


def summarise(times: Mapping[str, list[float]]) -> dict[str, Timing]:
    """Return the timing of each model from the rounds in which all of them took turns.

    A machine that gets slower for some rounds slows all models of a round alike. So the logarithm of a time is taken
    as the sum of the model's own and of the round's: a round's is the mean over the models, and the model's own is the
    median over the rounds of what is left (an additive fit by medians, as in Tukey's median polish). `p50` puts the
    median round back. With two models, the ratio of their `p50` is exactly the median of the rounds' ratios, and with
    any number of models a speed-up is the ratio of the times that are told beside it.

    Args:
        times: Times of each model, above 0, [rounds], in any unit.
    """
    names = list(times)
    logs = np.log(np.array([times[name] for name in names], dtype=np.float64))
    pace = logs.mean(axis=0)
    own = np.median(logs - pace, axis=1)
    middle = np.exp(own + np.median(pace))
    found = {}
    for index, name in enumerate(names):
        fast, high, highest = np.percentile(times[name], [20, 90, 99])
        p50 = float(middle[index])
        ratio: dict[str, float | None] = {}
        if DENSE in times and name != DENSE:
            dense = names.index(DENSE)
            _, low, upper = median_interval(np.divide(times[DENSE], times[name]))
            speedup = float(middle[dense] / middle[index])
            ratio = {"speedup": speedup, "speedup_low": min(low, speedup), "speedup_high": max(upper, speedup)}
        tail = {"p90": max(p50, float(high)), "p99": max(p50, float(highest))}
        found[name] = Timing(p50=p50, fast=float(fast), num_rounds=len(times[name]), **tail, **ratio)  # type: ignore[arg-type]
    return found
