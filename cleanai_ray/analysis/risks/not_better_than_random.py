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
        """Yield a risk of the best trial's method, and one of all others."""
        if study.ok.is_empty() or CONTROL not in study.methods:
            return
        own = study.best["label"] if study.best else None
        gains = {rank.label: rank.gain_over_random for rank in rank_methods(study) if rank.gain_over_random is not None}
        losers = {label: points(gain, 2) for label, gain in gains.items() if gain <= 0}
        if own in losers:
            sentence = (
                f"{own}, the method of the best trial, is not better than random pruning: {losers.pop(own)} on average "
                "over the cells that both have."
            )
            yield Risk("medium", "not better than random", sentence, is_about_best=True)
        if losers:
            sentence = (
                f"{plural(len(losers), 'method')} did not beat random pruning on average over the cells that both have."
            )
            lines = [f"{label}: {difference}" for label, difference in losers.items()]
            yield Risk("medium", "not better than random", sentence, shorten_list(lines))
        if own == CONTROL and len(study.methods) > 1:
            sentence = "The most accurate trial is a random one: no method of the study earned its cost."
            yield Risk("medium", "not better than random", sentence, is_about_best=True)
