"""Latency of forward passes: several models interleaved, warmed up, percentiles over runs."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cleanai_ray.config.evaluation import LatencySection
from cleanai_ray.errors import EvaluationError
from cleanai_ray.evaluation.backends import Forward, prepare, require_backends
from cleanai_ray.evaluation.machine import device_name
from cleanai_ray.evaluation.memory import peak_memory
from cleanai_ray.evaluation.significance import median_interval
from cleanai_ray.nn.hooks import require_no_hooks
from cleanai_ray.nn.modes import evaluation_mode

_NANOSECONDS_PER_MILLISECOND = 1e6


@contextmanager
def _threads(num_threads: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _describe(device: torch.device) -> str:
    return f"{device} ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else str(device)


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _time(forward: Forward, batch: Tensor, finish: Callable[[], None]) -> int:
    finish()
    start = time.perf_counter_ns()
    forward(batch)
    finish()
    return time.perf_counter_ns() - start


def _rounds(
    forwards: Mapping[str, Forward], batch: Tensor, *, warmup: int, runs: int, finish: Callable[[], None]
) -> dict[str, list[int]]:
    """Time every model once a round, in an order that is reversed every round; return nanoseconds by model."""
    times: dict[str, list[int]] = {name: [] for name in forwards}
    names = list(forwards)
    for index in range(warmup + runs):
        for name in names if index % 2 == 0 else reversed(names):
            elapsed = _time(forwards[name], batch, finish)
            if index >= warmup:
                times[name].append(elapsed)
    return times


def measure_latency(
    models: Mapping[str, nn.Module],
    example_input: Tensor,
    section: LatencySection,
    *,
    device: torch.device | str = "cpu",
) -> list[dict[str, Any]]:
    """Time forward passes of several models under the same conditions.

    For each back end and batch size there are `section.warmup` untimed and `section.runs` timed rounds. In each round
    every model runs once, in alternating order, so that a noisy machine affects all of them alike. On CUDA a time ends
    when the device has finished. A latency is that of the whole pass, and is never divided by the batch size. The
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
                for name, values in times.items():
                    row = {**_row(name, values, batch_size, section, device), "backend": backend}
                    rows.append({**row, **_speedup(times, name), "peak_memory_bytes": peaks[name]})
    return rows


def compare_latency(
    dense: nn.Module,
    pruned: nn.Module,
    example_input: Tensor,
    section: LatencySection,
    *,
    device: torch.device | str = "cpu",
) -> dict[str, Any]:
    """Time two models under the same conditions, as `measure_latency` does, at `section.budget_batch_size`.

    Returns:
        `ratio`: the median over the rounds of the pruned model's time divided by the dense model's in the same round,
        so it does not change when the whole machine gets slower or faster meanwhile. Also the medians of both
        in milliseconds, and the conditions.

    Raises:
        EvaluationError: When there is no example, or a hook is left on a model.
    """
    device, batch_size = torch.device(device), section.budget_batch_size
    models = {"dense": dense, "pruned": pruned}
    with _conditions(models, example_input, section, device), torch.inference_mode():
        times = _time_batch(models, _batch_of(example_input, batch_size, device), section, device)
    rows = {name: _row(name, values, batch_size, section, device) for name, values in times.items()}
    return {
        "ratio": float(np.median(np.array(times["pruned"]) / np.array(times["dense"]))),
        "latency_ms_p50": rows["pruned"]["latency_ms_p50"],
        "latency_ms_p50_dense": rows["dense"]["latency_ms_p50"],
        **{name: rows["dense"][name] for name in ("batch_size", "num_runs", "num_warmup", "num_threads", "device")},
    }


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
        stack.enter_context(_threads(section.threads))
        for model in models.values():
            stack.enter_context(evaluation_mode(model.to(device)))
        yield


def _batch_of(example_input: Tensor, batch_size: int, device: torch.device) -> Tensor:
    return example_input[torch.arange(batch_size) % len(example_input)].to(device)


def _time_batch(
    forwards: Mapping[str, Forward], batch: Tensor, section: LatencySection, device: torch.device
) -> dict[str, list[int]]:
    return _rounds(forwards, batch, warmup=section.warmup, runs=section.runs, finish=lambda: _finish(device))


def _peak(backend: str, model: nn.Module, forward: Forward, batch: Tensor) -> int | None:
    """Return the peak memory of a forward pass; None for onnxruntime, whose memory is not known."""
    return None if backend == "onnxruntime" else peak_memory(model, forward, batch)


def _row(
    variant: str, nanoseconds: list[int], batch_size: int, section: LatencySection, device: torch.device
) -> dict[str, Any]:
    median, high, highest = np.percentile(np.array(nanoseconds) / _NANOSECONDS_PER_MILLISECOND, [50, 90, 99])
    return {
        "variant": variant,
        "batch_size": batch_size,
        "latency_ms_p50": float(median),
        "latency_ms_p90": float(high),
        "latency_ms_p99": float(highest),
        "throughput": float(batch_size / median * 1000.0),
        "num_runs": section.runs,
        "num_warmup": section.warmup,
        "num_threads": section.threads,
        "device": _describe(device),
        "device_name": device_name(device),
    }


def _speedup(times: Mapping[str, list[int]], variant: str) -> dict[str, float | None]:
    """Return how many times as fast as the dense model a variant is, with its interval, from ratios of each round."""
    columns = ("speedup", "speedup_low", "speedup_high")
    if variant == "dense" or "dense" not in times:
        return dict.fromkeys(columns)
    ratios = np.array(times["dense"]) / np.array(times[variant])
    return dict(zip(columns, median_interval(ratios), strict=True))
