"""Trials that differ in quantisation alone: one pruned, repaired and fine-tuned model serves them all."""

from __future__ import annotations

from collections.abc import Iterable

from cleanai_ray.config.study import Study, Trial, digest


def group_siblings(study: Study, trials: Iterable[Trial]) -> list[tuple[Trial, ...]]:
    """Return trials in groups that share their model in float, in the order in which they come.

    Trials whose widths are rounded differently (`pruning.round_to: auto`) do not share it.
    """
    groups: dict[str, list[Trial]] = {}
    for trial in trials:
        in_float = trial.model_copy(update={"quantization": "none"})
        rounded_to = study.pruning.resolved(trial.quantization).round_to
        groups.setdefault(digest([in_float.identity, rounded_to]), []).append(trial)
    return [tuple(group) for group in groups.values()]
