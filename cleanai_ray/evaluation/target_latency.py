"""Latency in a target: models prepared by its back end and timed in turns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from cleanai_ray.config.evaluation import LatencySection
from cleanai_ray.config.target import TargetSection
from cleanai_ray.errors import EvaluationError
from cleanai_ray.evaluation.machine import describe_device, device_name
from cleanai_ray.evaluation.rounds import DENSE, Timing, summarise, take_turns
from cleanai_ray.evaluation.targets.base import Run, TargetBackend
from cleanai_ray.nn.hooks import require_no_hooks
from cleanai_ray.registry import TARGETS

_FIELD = "evaluation.target.backend"
_LEAST_MS_OF_A_COMPARISON = 1000.0


@dataclass(frozen=True, kw_only=True)
class TargetTimes:
    """The times of models in a target.

    Attributes:
        timings: By model, in milliseconds a pass.
        device: The device that they ran on.
    """

    timings: Mapping[str, Timing]
    device: torch.device


@contextmanager
def named(words: str) -> Iterator[None]:
    """Put words before the errors of the context, which do not say which field of a study, or which model, they are of.

    Raises:
        EvaluationError: When the context raises one.
    """
    try:
        yield
    except EvaluationError as error:
        raise EvaluationError(f"{words}: {error}") from error


def require_target_packages(target: TargetSection) -> None:
    """Check that the packages that a target needs are installed, on a machine that need not be the one that times.

    Raises:
        EvaluationError: When one is missing; the message names it.
    """
    with named(f"{_FIELD} is {target.backend}"):
        TARGETS.get(target.backend).require_packages()


def open_target(target: TargetSection, device: torch.device | str, *, quick: bool = False) -> TargetBackend:
    """Return the back end of a target, ready to prepare the models of one comparison.

    Args:
        target: The target.
        device: The study's device.
        quick: True for many models of one architecture; see `TargetBackend`.

    Raises:
        EvaluationError: When the target cannot run here; the message names the package or device that lacks.
    """
    with named(f"{_FIELD} is {target.backend}"):
        return TARGETS.get(target.backend)(target, torch.device(device), quick=quick)


def time_in_target(
    models: Mapping[str, nn.Module],
    example_input: Tensor,
    target: TargetSection,
    section: LatencySection,
    *,
    device: torch.device | str = "cpu",
    quick: bool = False,
    least_ms: float = 0.0,
) -> TargetTimes:
    """Time forward passes of several models in a target, in turns; the models are not changed.

    Args:
        models: The models by name; `dense` is what speed-ups refer to.
        example_input: Images [N, ...], repeated or cut to the target's batch size.
        target: What runs them.
        section: How often: `warmup` and `runs`.
        device: The study's device.
        quick: True for many models of one architecture; see `TargetBackend`.
        least_ms: How long the timed passes take at least; see `take_turns`.

    Raises:
        EvaluationError: When the target cannot run here, or not one of the models.
    """
    require_timeable(models, example_input)
    backend = open_target(target, device, quick=quick)
    with torch_threads(target.threads):
        with named(f"{_FIELD} is {target.backend}"):
            runs = prepare_all(backend, models, batch_of(example_input, target.batch_size))
        return TargetTimes(timings=time_runs(backend, runs, section, least_ms), device=backend.device)


def require_timeable(models: Mapping[str, nn.Module], example_input: Tensor) -> None:
    """Check that there is something to time, and that no model carries hooks.

    Raises:
        EvaluationError: When there is not, or one does.
    """
    if not models or len(example_input) == 0:
        raise EvaluationError(
            f"latency was asked of {len(models)} models with {len(example_input)} examples, at least 1 each is needed"
        )
    for model in models.values():
        require_no_hooks(model)


def batch_of(example_input: Tensor, batch_size: int) -> Tensor:
    """Return images [batch_size, ...]: images [N, ...], repeated or cut."""
    return example_input[torch.arange(batch_size) % len(example_input)]


def prepare_all(backend: TargetBackend, models: Mapping[str, nn.Module], batch: Tensor) -> dict[str, Run]:
    """Return the runs of several models on a batch.

    Raises:
        EvaluationError: When the back end cannot run one of them; the message names it.
    """
    runs = {}
    for name, model in models.items():
        with named(f"the {name} model"):
            runs[name] = backend.prepare(model, batch)
    return runs


def time_runs(
    backend: TargetBackend, runs: Mapping[str, Run], section: LatencySection, least_ms: float = 0.0
) -> dict[str, Timing]:
    """Time prepared models in turns, as often as a section says."""
    timers = {name: (lambda run=run: backend.milliseconds(run)) for name, run in runs.items()}
    return summarise(take_turns(timers, warmup=section.warmup, runs=section.runs, least_ms=least_ms))


def target_rows(times: TargetTimes, target: TargetSection, section: LatencySection) -> list[dict[str, Any]]:
    """Return a row per model with the columns of `schemas.LATENCY` except trial_id."""
    rows = []
    for name, timing in times.timings.items():
        row = latency_row(name, timing, target, section, times.device)
        rows.append({**row, "backend": target.backend, "target": target.label})
    return rows


def latency_row(
    variant: str, timing: Timing, target: TargetSection, section: LatencySection, device: torch.device
) -> dict[str, Any]:
    """Return the columns of `schemas.LATENCY` that follow from how a model was timed: all but trial_id and backend.

    Args:
        variant: The model: `dense` or `pruned`.
        timing: Its times in milliseconds.
        target: What ran it.
        section: How often.
        device: Where it ran.
    """
    return {
        "variant": variant,
        "target": None,
        "exclusive": False,
        "peak_memory_bytes": None,
        "batch_size": target.batch_size,
        "latency_ms_p50": timing.p50,
        "latency_ms_p90": timing.p90,
        "latency_ms_p99": timing.p99,
        "speedup": timing.speedup,
        "speedup_low": timing.speedup_low,
        "speedup_high": timing.speedup_high,
        "throughput": target.batch_size / timing.p50 * 1000.0,
        "num_runs": section.runs,
        "num_warmup": section.warmup,
        "num_threads": target.threads,
        "device": describe_device(device),
        "device_name": device_name(device),
    }


def compare_in_target(
    dense: nn.Module,
    pruned: nn.Module,
    example_input: Tensor,
    target: TargetSection,
    section: LatencySection,
    *,
    device: torch.device | str = "cpu",
) -> dict[str, Any]:
    """Time two models in a target, as `time_in_target` does, for a second at least.

    Returns:
        `ratio`: the median over the rounds of the pruned model's time divided by the dense model's in the same round,
        so it does not change when the whole machine gets slower or faster meanwhile. Also the times of both in
        milliseconds, and the conditions.

    Raises:
        EvaluationError: When the target cannot run here, or not one of the models.
    """
    models = {DENSE: dense, "pruned": pruned}
    times = time_in_target(
        models, example_input, target, section, device=device, quick=True, least_ms=_LEAST_MS_OF_A_COMPARISON
    )
    found = times.timings
    return {
        "ratio": found["pruned"].p50 / found[DENSE].p50,
        "latency_ms_p50": found["pruned"].p50,
        "latency_ms_p50_dense": found[DENSE].p50,
        "batch_size": target.batch_size,
        "num_runs": found["pruned"].num_rounds,
        "num_warmup": section.warmup,
        "num_threads": target.threads,
        "device": f"{describe_device(times.device)}, {target.engine}",
    }


@contextmanager
def torch_threads(number: int) -> Iterator[None]:
    """Let torch compute with a number of threads within the context."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)
