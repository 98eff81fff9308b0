"""The order of a trial's stages, and a run of several trials that share the stages they have in common."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from cleanai_ray.config.digests import digest
from cleanai_ray.config.study import Study, Trial
from cleanai_ray.errors import StudyError
from cleanai_ray.nn.batch_limit import process_limit
from cleanai_ray.nn.notices import collected_notices
from cleanai_ray.registry import STAGES
from cleanai_ray.stages.base import Stage, TrialSetting
from cleanai_ray.stages.scores import score_model
from cleanai_ray.stages.state import TrialState

SCORING = "evaluate"
"""Name of the `seconds_` column that the time of scoring counts towards."""


_OWN_STAGES = ("Prune", "Repair", "FineTune", "Quantize", "Measure")


@dataclass(frozen=True, kw_only=True)
class Step:
    """One stage of a trial, after one of its pruning steps.

    Attributes:
        stage: The class of the stage.
        number: The pruning step it belongs to, from 1.
        key: Digest of the stage's key, name and pruning step.
        scored_as: Name of the score taken after it; None if it is not scored.
        compares: True if the score includes a comparison with the dense model.
        is_plugin: True for a stage that is not one of this package's own.
    """

    stage: type[Stage]
    number: int
    key: str
    scored_as: str | None
    compares: bool
    is_plugin: bool


def plan_stages(study: Study, trial: Trial) -> tuple[Step, ...]:
    """Return the stages of a trial in the order in which they run.

    If a study fine-tunes between pruning steps, the stages that repeat run after every step. Scores are taken after the
    last step only. The model is compared with the dense one after the last stage that is scored, and also before a
    stage that makes a variant of it.

    Raises:
        StudyError: When a stage of a plug-in would run before `prune`, which tells trials apart.
    """
    classes = sorted((STAGES.get(name) for name in STAGES.names()), key=lambda stage: (stage.position, stage.__name__))
    if classes[0].__qualname__ != _OWN_STAGES[0]:
        first, own = classes[0], STAGES.get("prune").position
        raise StudyError(
            f"stage {first.__qualname__} has position {first.position}; allowed: above {own}, that of prune"
        )
    alternates = study.finetune.between_steps > 0
    placed = [
        (stage, number)
        for number in range(1 if alternates else trial.steps, trial.steps + 1)
        for stage in classes
        if (stage.repeats or number == trial.steps) and stage.applies(study, trial, number)
    ]
    steps = []
    for place, (stage, number) in enumerate(placed):
        later = [other for other, _ in placed[place + 1 :] if other.scored_as is not None]
        # What a control that is trained anew was cut to, it has forgotten when it is trained.
        is_scored = number == trial.steps and not (trial.trains_anew and stage.scored_as == "pruned")
        scored_as = stage.scored_as if is_scored else None
        compares = all(other.is_variant for other in later)
        steps.append(
            Step(
                stage=stage,
                number=number,
                key=digest([stage.__qualname__, number, scored_as, compares, stage.key(study, trial)]),
                scored_as=scored_as,
                compares=compares,
                is_plugin=stage.__qualname__ not in _OWN_STAGES,
            )
        )
    return tuple(steps)


def group_trials(study: Study, trials: Iterable[Trial]) -> list[tuple[Trial, ...]]:
    """Return trials in groups that share at least the first stage; the groups keep the order of the trials.

    Within a group, the trials that share most stages are neighbours.
    """
    groups: dict[str, list[tuple[tuple[str, ...], Trial]]] = {}
    for trial in trials:
        keys = tuple(step.key for step in plan_stages(study, trial))
        groups.setdefault(keys[0], []).append((keys, trial))
    return [tuple(trial for _, trial in _order_by_shared_stages(group)) for group in groups.values()]


def _order_by_shared_stages(
    group: Sequence[tuple[tuple[str, ...], Trial]],
) -> list[tuple[tuple[str, ...], Trial]]:
    """Return trials in their order, moved as little as makes those that share most first stages neighbours."""
    first_seen: dict[tuple[str, ...], int] = {}
    for place, (keys, _) in enumerate(group):
        for length in range(len(keys) + 1):
            first_seen.setdefault(keys[:length], place)
    return sorted(group, key=lambda entry: [first_seen[entry[0][:length]] for length in range(len(entry[0]) + 1)])


def run_stages(
    setting: TrialSetting, trials: Sequence[tuple[Trial, Sequence[Step]]]
) -> Iterator[tuple[Trial, TrialState | Exception]]:
    """Run trials one after another, and yield each with its final state, or with the error that ended it.

    A shared stage runs once: its time is counted for the first of its trials, and its error ends all of them.

    Args:
        setting: The surroundings of the trials, which all read the same calibration samples.
        trials: Trials and their stages; trials that share most first stages are neighbours.
    """
    kept: dict[tuple[str, ...], TrialState | Exception] = {}
    for place, (trial, steps) in enumerate(trials):
        keys = tuple(step.key for step in steps)
        later = [tuple(step.key for step in others) for _, others in trials[place + 1 :]]
        branches = {keys[: _common_length(keys, other)] for other in later}
        length = max((len(known) for known in kept if keys[: len(known)] == known), default=0)
        state = kept[keys[:length]] if length else TrialState(model=setting.dense_model)
        for number in range(length, len(steps)):
            if isinstance(state, TrialState):
                state = _advance(setting, trial, steps[number], state)
                if isinstance(state, TrialState) and keys[: number + 1] in branches:
                    state = replace(state, is_kept=True)
            if keys[: number + 1] in branches:
                kept[keys[: number + 1]] = state if isinstance(state, Exception) else state.without_time()
        kept = {known: found for known, found in kept.items() if known in branches}
        yield trial, state


def _common_length(one: tuple[str, ...], other: tuple[str, ...]) -> int:
    pairs = zip(one, other, strict=False)
    return next((place for place, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))


def _advance(setting: TrialSetting, trial: Trial, step: Step, state: TrialState) -> TrialState | Exception:
    """Return the state after one stage and its score, or the error that was raised."""
    try:
        with collected_notices() as notices:
            state = _run_step(setting, trial, step, state)
        return state.told(notices)
    except Exception as error:
        return error


def _run_step(setting: TrialSetting, trial: Trial, step: Step, before: TrialState) -> TrialState:
    stage = step.stage(setting, trial, step.number)
    begun = time.perf_counter()
    if step.stage.restarts:
        state = process_limit.within_memory(lambda: stage.run(before), f"the stage {step.stage.__name__}")
    else:
        state = stage.run(before)
    if step.is_plugin:
        state = replace(state, plugin_keys=(*state.plugin_keys, step.key))
    done = time.perf_counter()
    state = state.spent(step.stage.timed_as, done - begun)
    if step.scored_as is None:
        return state
    score = score_model(
        setting.workspace, setting.dense_logits, state.final_model, setting.context, compares=step.compares
    )
    return state.scored(step.scored_as, score).spent(SCORING, time.perf_counter() - done)
