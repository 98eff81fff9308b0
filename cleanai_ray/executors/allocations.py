"""Searches for the allocations of a study's budgets, with candidates scored in parallel; each result is kept."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence

from cleanai_ray.config.digests import digest
from cleanai_ray.config.study import Study, Trial
from cleanai_ray.errors import PruningError
from cleanai_ray.executors.context import DenseWeights, RunContext
from cleanai_ray.importance.base import create_method
from cleanai_ray.pruning.allocation import Allocation, AllocationProblem, Counts, Images, search_allocation
from cleanai_ray.pruning.measurements import Measurements
from cleanai_ray.pruning.pruner import Pruner
from cleanai_ray.sensitivity import CandidateScorer
from cleanai_ray.stages.blocks import BareWeights, measured_model
from cleanai_ray.stages.dense_measures import DenseMeasures, study_candidates
from cleanai_ray.stages.fingerprints import bounds_key, moments_key
from cleanai_ray.stages.workspace import open_workspace

_scorers: dict[str, CandidateScorer] = {}
"""The scorer that this process used last, by the digest of what it was made from."""


def searching_trials(study: Study) -> list[Trial]:
    """Return a trial for each search that a study asks for.

    The search for a latency budget, which needs the machine of the trial, is part of the trial.
    """
    found: dict[str, Trial] = {}
    for trial in study.trials():
        timed = trial.budget is None or trial.budget.resource == "latency"
        if timed or not create_method(trial.method, dict(trial.options)).search:
            continue
        bounds = bounds_key(study, trial.quantization)
        shared = trial.model_dump(mode="json", include={"method", "options", "budget"})
        found.setdefault(digest([shared, bounds]), trial)
    return list(found.values())


def find_allocations(
    context: RunContext, dense: DenseWeights, measures: DenseMeasures, trials: Sequence[Trial]
) -> dict[str, Allocation]:
    """Return the allocations for some trials by the key of their problem, from the run directory or searched for now.

    Args:
        context: The run, of one draw of the calibration samples.
        dense: The dense weights.
        measures: Measurements of the dense model, among them moments and curves.
        trials: The trials, of which each has a search of its own.
    """
    study = context.study
    found: dict[str, Allocation] = {}
    inputs = moments_key(study, dense.digest)
    shared = context.executor.share(measures)

    def scores(candidates: Sequence[Counts], images: Images) -> Sequence[float]:
        name, items = f"candidate-{study.name}", [(dict(candidate), images) for candidate in candidates]
        arguments = study.model_dump_json(), inputs, dense.content, shared
        return context.executor.map(name, _score, items, *arguments)

    def allocate(problem: AllocationProblem) -> Allocation:
        name, key = f"{context.folder}/allocations/{problem.key}.json", digest([inputs, problem.key])
        content = context.cached(
            name, key, lambda: json.dumps(search_allocation(problem, scores).to_dict(), indent=1).encode()
        )
        found[problem.key] = Allocation(**json.loads(content))
        return found[problem.key]

    weights = dense.content.get()
    model = context.workspace.dense_model(weights.content if isinstance(weights, BareWeights) else weights)
    for trial in trials:
        with contextlib.suppress(PruningError):  # of a budget that cannot be met; the trial will say so
            Pruner(
                model,
                context.workspace.example_input(),
                trial,
                bounds=study.pruning,
                ignored_layers=context.workspace.ignored_layers(),
                measured=Measurements(curves=measures.curves, allocate=allocate, multiple=study.multiple),
                blocks=measures.blocks.plans,
            ).take_step(1)
    _scorers.clear()  # Where candidates were scored in this process, their model would stay on the device.
    return found


def _score(
    device: str,
    item: tuple[Counts, Images],
    study_json: str,
    inputs: str,
    weights: bytes | BareWeights,
    measures: DenseMeasures,
) -> float:
    """Return the score of one candidate; the process keeps what it takes to score others."""
    key = digest([inputs, device])
    if key not in _scorers:
        workspace = open_workspace(study_json, device)
        _scorers.clear()
        _scorers[key] = study_candidates(workspace, measured_model(workspace, weights), measures)
    return _scorers[key].score(*item)
