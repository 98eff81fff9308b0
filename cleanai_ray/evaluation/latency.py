"""Latency of forward passes in the back ends that `evaluation.latency.backends` names, at several batch sizes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from cleanai_ray.config.evaluation import Backend, LatencySection
from cleanai_ray.config.target import TargetBackendName, TargetSection
from cleanai_ray.errors import EvaluationError
from cleanai_ray.evaluation.memory import peak_memory
from cleanai_ray.evaluation.target_latency import (
    batch_of,
    latency_row,
    named,
    prepare_all,
    require_timeable,
    time_runs,
    torch_threads,
)
from cleanai_ray.evaluation.targets.base import Run, TargetBackend
from cleanai_ray.registry import TARGETS

_FIELD = "evaluation.latency.backends"

_TARGETS: dict[Backend, TargetBackendName] = {
    "eager": "torch",
    "compile": "torch_compile",
    "onnxruntime": "onnxruntime",
}
"""The back ends of targets, by the names that they have in `evaluation.latency.backends` and in tables."""


def require_installed(section: LatencySection) -> None:
    """Check that the packages which a section's back ends need are installed.

    Raises:
        EvaluationError: When one is missing; the message names it.
    """
    for name in section.backends:
        with named(f"{_FIELD} has {name}"):
            TARGETS.get(_TARGETS[name]).require_packages()


def require_backends(section: LatencySection, device: torch.device | str) -> None:
    """Check, before anything is pruned, that every back end of a section works in this process.

    Raises:
        EvaluationError: When one does not; the message names the field and what is allowed.
    """
    require_installed(section)
    for name in section.backends:
        with named(f"{_FIELD} has {name}"):
            _open(name, section, 1, torch.device(device))


def _open(name: Backend, section: LatencySection, batch_size: int, device: torch.device) -> TargetBackend:
    target = TargetSection(backend=_TARGETS[name], batch_size=batch_size, threads=section.threads)
    backend: TargetBackend = TARGETS.get(target.backend)(target, device)
    if backend.device.type != device.type:
        raise EvaluationError(f"it is timed on CPUs only, and the device is {device}; allowed there: eager, compile")
    return backend


def measure_latency(
    models: Mapping[str, nn.Module],
    example_input: Tensor,
    section: LatencySection,
    *,
    device: torch.device | str = "cpu",
) -> list[dict[str, Any]]:
    """Time forward passes of several models under the same conditions; the models are not changed.

    For each back end and batch size there are `section.warmup` untimed and `section.runs` timed rounds. In each round
    every model is timed once, in alternating order, so that a noisy machine affects all of them alike. On CUDA a time
    ends when the device has finished. A latency is that of the whole pass, and is never divided by the batch size. The
    speed-up is the median over the rounds of the dense model's time divided by the pruned one's in the same round,
    so it does not change when the whole machine gets slower or faster meanwhile.

    Args:
        models: The models by variant ("dense", "pruned").
        example_input: Images [N, ...], repeated or cut to each batch size.
        section: Back ends, batch sizes, rounds and CPU threads.
        device: Where to run.

    Returns:
        A row per back end, batch size and model, with the columns of `schemas.LATENCY` except trial_id.

    Raises:
        EvaluationError: When there is no model or no example, a hook is left on a model, or a back end does not work
            here.
    """
    require_timeable(models, example_input)
    require_backends(section, device)
    rows = []
    with torch_threads(section.threads):
        for name in section.backends:
            with named(f"{_FIELD} has {name}"):
                rows += list(_rows(name, models, example_input, section, torch.device(device)))
    return rows


def _rows(
    name: Backend, models: Mapping[str, nn.Module], example_input: Tensor, section: LatencySection, device: torch.device
) -> Iterator[dict[str, Any]]:
    """Yield the rows of one back end."""
    ready: dict[str, nn.Module] = {}
    for batch_size in section.batch_sizes:
        backend = _open(name, section, batch_size, device)
        for variant, model in models.items():
            if variant not in ready:
                with named(f"the {variant} model"):
                    ready[variant] = backend.translated(model, example_input)
        batch = batch_of(example_input, batch_size)
        runs = prepare_all(backend, ready, batch)
        for variant, timing in time_runs(backend, runs, section).items():
            row = latency_row(variant, timing, backend.target, section, backend.device)
            peak = _peak(backend, models[variant], runs[variant], batch)
            yield {**row, "backend": name, "peak_memory_bytes": peak}


def _peak(backend: TargetBackend, model: nn.Module, run: Run, batch: Tensor) -> int | None:
    """Return the peak memory of a forward pass; None for onnxruntime, whose memory is not known."""
    if backend.target.backend == "onnxruntime":
        return None
    return peak_memory(model, lambda _: run(), batch.to(backend.device))
