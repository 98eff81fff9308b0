"""Risk: methods that random pruning matches."""

from __future__ import annotations

from collections.abc import Iterator

from cleanai_ray.analysis.frames import StudyFrames
from cleanai_ray.analysis.method_ranks import CONTROL, rank_methods
from cleanai_ray.analysis.numbers import plural, points
from cleanai_ray.analysis.risks.base import Check, Risk, shorten_list
from cleanai_ray.registry import RISKS


@RISKS.register("not_better_than_random")
class NotBetterThanRandom(Check):
    """Methods that are no better than random on average."""

    position = 130
    looks_for = "methods no better than random"

    def find(self, study: StudyFrames) -> Iterator[Risk]:
        """Yield one risk, which begins with the best trial's method where that is among them."""
        if study.ok.is_empty() or CONTROL not in study.methods:
            return
        own = study.best["label"] if study.best else None
        gains = {rank.label: rank.gain_over_random for rank in rank_methods(study) if rank.gain_over_random is not None}
        losers = {label: points(gain, 2) for label, gain in gains.items() if gain <= 0}
        told = []
        if own == CONTROL and len(study.methods) > 1:
            told.append("The most accurate trial is a random one: no method of the study earned its cost.")
        elif own in losers:
            told.append(
                f"{own}, the method of the best trial, is not better than random pruning: {losers.pop(own)} on average "
                "over the cells that both have."
            )
        is_about_best = bool(told)
        if losers:
            other = "other method" if own in gains and is_about_best else "method"
            told.append(
                f"{plural(len(losers), other)} did not beat random pruning on average over the cells that both have."
            )
        if told:
            lines = [f"{label}: {difference}" for label, difference in losers.items()]
            yield Risk("medium", "not better than random", " ".join(told), shorten_list(lines), is_about_best)
