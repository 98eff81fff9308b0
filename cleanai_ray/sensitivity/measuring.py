"""The measurements that a method reads, made in this process."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from cleanai_ray.coverage.base import needs_sections
from cleanai_ray.display.progress import watched
from cleanai_ray.importance.base import create_method
from cleanai_ray.pruning.allocation import Allocation, AllocationProblem, search_allocation
from cleanai_ray.pruning.measurements import Measurements, Remeasure
from cleanai_ray.pruning.pruning_job import PruningJob
from cleanai_ray.sensitivity.candidates import score_candidates
from cleanai_ray.sensitivity.profile import measure_sensitivity
from cleanai_ray.statistics import CalibrationOptions
from cleanai_ray.statistics import calibrate as collect_statistics
from cleanai_ray.statistics.calibration import Batch


def measure_for(job: PruningJob, given: Measurements, batches: Iterable[Batch] | None) -> Measurements:
    """Return measurements with all that a job's method reads and was not given, of its network without its blocks.

    Args:
        job: The model, and how to prune it.
        given: The measurements that are there already.
        batches: Calibration inputs [N, ...] or (inputs, targets); None: nothing is measured.
    """
    if batches is None:
        return given
    method = create_method(job.trial.method, job.trial.options)
    network, inputs, ignored, check = job.bare, job.example_inputs, job.ignored, job.bounds.check
    calibrate = _calibration(job, batches)
    statistics, curves = given.statistics, given.curves
    if statistics is None and method.needs_statistics:
        statistics = calibrate(network)
    if curves is None and method.needs_curves:
        shown = watched("sensitivity", batches)
        curves = measure_sensitivity(network, inputs, shown, ignored_layers=ignored, check=check)

    def allocate(problem: AllocationProblem) -> Allocation:
        assert curves is not None
        scorer = score_candidates(network, inputs, batches, curves, ignored_layers=ignored, check=check)
        return search_allocation(problem, scorer)

    return replace(given, statistics=statistics, curves=curves, remeasure=calibrate, allocate=allocate)


def _calibration(job: PruningJob, batches: Iterable[Batch]) -> Remeasure:
    """Return a function that calibrates a network for a job's method."""
    method = create_method(job.trial.method, job.trial.options)
    section = job.calibration
    options = CalibrationOptions(
        threshold=section.threshold,
        top_k=section.top_k,
        sections=section.sections if needs_sections(job.trial.coverage_metric) else None,
        outputs=section.observe == "output" or method.needs_outputs,
        gradients=method.needs_gradients,
        squared_gradients=method.needs_squared_gradients,
        precision=section.precision,
    )
    return lambda network: collect_statistics(network, watched("calibration", batches), options, loss=job.loss)
