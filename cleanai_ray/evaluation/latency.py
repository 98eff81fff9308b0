"""Latency of forward passes: several models interleaved, warmed up, percentiles over runs."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from cleanai_ray.config.evaluation import LatencySection
from cleanai_ray.errors import EvaluationError
from cleanai_ray.evaluation.backends import Forward, prepare, require_backends
from cleanai_ray.evaluation.machine import describe_device, device_name
from cleanai_ray.evaluation.memory import peak_memory
from cleanai_ray.evaluation.rounds import Timing, summarise, take_turns
from cleanai_ray.evaluation.target_latency import torch_threads
from cleanai_ray.nn.hooks import require_no_hooks
from cleanai_ray.nn.modes import evaluation_mode

_NANOSECONDS_PER_MILLISECOND = 1e6


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _time(forward: Forward, batch: Tensor, finish: Callable[[], None]) -> float:
    finish()
    start = time.perf_counter_ns()
    forward(batch)
    finish()
    return (time.perf_counter_ns() - start) / _NANOSECONDS_PER_MILLISECOND


def _rounds(
    forwards: Mapping[str, Forward], batch: Tensor, *, warmup: int, runs: int, finish: Callable[[], None]
) -> dict[str, list[float]]:
    """Time every model once a round, in an order that changes every round; return milliseconds by model."""
    timers = {name: (lambda run=run: _time(run, batch, finish)) for name, run in forwards.items()}
    return take_turns(timers, warmup=warmup, runs=runs)


def measure_latency(
    models: Mapping[str, nn.Module],
    example_input: Tensor,
    section: LatencySection,
    *,
    device: torch.device | str = "cpu",
) -> list[dict[str, Any]]:
    """Time forward passes of several models under the same conditions.

    For each back end and batch size there are `section.warmup` untimed and `section.runs` timed rounds. In each round
    every model is timed once, in alternating order, so that a noisy machine affects all of them alike. On CUDA a time
    ends when the device has finished. A latency is that of the whole pass, and is never divided by the batch size. The
    speed-up is the median over the rounds of the dense model's time divided by the pruned one's in the same round,
    so it does not change when the whole machine gets slower or faster meanwhile.

    Args:
        models: The models by variant ("dense", "pruned"). They are moved to the device.
        example_input: Images [N, ...], repeated or cut to each batch size.
        section: Back ends, batch sizes, rounds and CPU threads.
        device: Where to run.

    Returns:
        A row per back end, batch size and model, with the columns of `schemas.LATENCY` except trial_id.

    Raises:
        EvaluationError: When there is no model or no example, a hook is left on a model, or a back end does not work
            here.
    """
    device = torch.device(device)
    require_backends(section, device)
    rows = []
    with _conditions(models, example_input, section, device):
        for backend in section.backends:
            forwards_for = prepare(backend, models, example_input, section.threads)
            for batch_size in section.batch_sizes:
                batch = _batch_of(example_input, batch_size, device)
                forwards = forwards_for(batch)
                with torch.inference_mode():
                    times = _time_batch(forwards, batch, section, device)
                    peaks = {name: _peak(backend, models[name], run, batch) for name, run in forwards.items()}
                for name, timing in summarise(times).items():
                    row = {**_row(name, timing, batch_size, section, device), "backend": backend}
                    rows.append({**row, "peak_memory_bytes": peaks[name]})
    return rows


@contextmanager
def _conditions(
    models: Mapping[str, nn.Module], example_input: Tensor, section: LatencySection, device: torch.device
) -> Iterator[None]:
    """Check the models, and hold the conditions of timing within the context: device, threads and evaluation mode."""
    if not models or len(example_input) == 0:
        raise EvaluationError(
            f"latency was asked of {len(models)} models with {len(example_input)} examples, at least 1 each is needed"
        )
    for model in models.values():
        require_no_hooks(model)
    with ExitStack() as stack:
        stack.enter_context(torch_threads(section.threads))
        for model in models.values():
            stack.enter_context(evaluation_mode(model.to(device)))
        yield


def _batch_of(example_input: Tensor, batch_size: int, device: torch.device) -> Tensor:
    return example_input[torch.arange(batch_size) % len(example_input)].to(device)


def _time_batch(
    forwards: Mapping[str, Forward], batch: Tensor, section: LatencySection, device: torch.device
) -> dict[str, list[float]]:
    return _rounds(forwards, batch, warmup=section.warmup, runs=section.runs, finish=lambda: _finish(device))


def _peak(backend: str, model: nn.Module, forward: Forward, batch: Tensor) -> int | None:
    """Return the peak memory of a forward pass; None for onnxruntime, whose memory is not known."""
    return None if backend == "onnxruntime" else peak_memory(model, forward, batch)


def _row(
    variant: str, timing: Timing, batch_size: int, section: LatencySection, device: torch.device
) -> dict[str, Any]:
    """Return a row of latency.parquet from times in milliseconds."""
    return {
        "variant": variant,
        "target": None,
        "exclusive": False,
        "batch_size": batch_size,
        "latency_ms_p50": timing.p50,
        "latency_ms_p90": timing.p90,
        "latency_ms_p99": timing.p99,
        "speedup": timing.speedup,
        "speedup_low": timing.speedup_low,
        "speedup_high": timing.speedup_high,
        "throughput": batch_size / timing.p50 * 1000.0,
        "num_runs": section.runs,
        "num_warmup": section.warmup,
        "num_threads": section.threads,
        "device": describe_device(device),
        "device_name": device_name(device),
    }
