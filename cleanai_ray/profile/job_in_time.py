"""Budgets of latency of a job, met in this process by a latency profile."""

from __future__ import annotations

from dataclasses import replace

from cleanai_ray.display.progress import current
from cleanai_ray.profile.blocks import profile_without_blocks
from cleanai_ray.profile.clock import Clock
from cleanai_ray.profile.fitted import LatencyProfile
from cleanai_ray.profile.predicted import profile_model
from cleanai_ray.pruning.latency_budget import prune_to_budget
from cleanai_ray.pruning.measurements import Measurements
from cleanai_ray.pruning.predicted_latency import PredictedLatency
from cleanai_ray.pruning.prune_result import PruneResult
from cleanai_ray.pruning.pruning_job import PruningJob


def prune_in_time(job: PruningJob, measured: Measurements, clock: Clock, profile: LatencyProfile | None) -> PruneResult:
    """Meet a latency budget by what a profile predicts.

    Args:
        job: The model, and how to prune it.
        measured: What was measured on its network without its blocks.
        clock: Times models.
        profile: The dense model's profile; None: that of the network without its blocks is measured first.
    """
    blocks_save = clock.compare(job.model, job.task.restored(job.bare))["ratio"] if job.blocks else 1.0
    if profile is None:
        own = measure_job_profile(job, measured, clock)
        latency = PredictedLatency(predict=own.predict, dense_ms=own.dense_ms / blocks_save)
    else:
        latency = predicted_without(job, measured, profile, 1.0 - blocks_save)
    timed = replace(measured, latency=latency)
    return prune_to_budget(
        lambda trial: job.prune(trial, timed), job.trial, lambda small: clock.compare(job.model, small)
    )


def measure_job_profile(job: PruningJob, measured: Measurements, clock: Clock) -> LatencyProfile:
    """Measure the latency profile of a job's network without its blocks."""
    current().begin("latency profile")
    return profile_model(
        job.bare,
        job.example_inputs,
        clock,
        granularity=job.granularity_for_time(measured.multiple),
        ignored_layers=job.ignored,
        restored=job.task.restored,
        check=job.bounds.check,
    )


def predicted_without(
    job: PruningJob, measured: Measurements, profile: LatencyProfile, saved: float
) -> PredictedLatency:
    """Return the predicted times of a job's network without its blocks.

    Args:
        job: The model, and its blocks.
        measured: Holds the multiple that the target likes.
        profile: The dense model's profile.
        saved: The time that the blocks save together, as a fraction of the dense model's.
    """
    own = profile
    if job.blocks:
        own = profile_without_blocks(profile, job.graph(), job.granularity_for_time(measured.multiple), saved)
    return PredictedLatency(predict=own.predict, dense_ms=profile.dense_ms)
