"""Back ends that run a model while its latency is measured: torch itself, torch.compile, or onnxruntime."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from cleanai_ray.config.evaluation import LatencySection
from cleanai_ray.deploy.onnx import open_session, require_packages, to_onnx
from cleanai_ray.deploy.onnx_model import OnnxModel
from cleanai_ray.errors import ArtifactError, EvaluationError

_FIELD = "evaluation.latency.backends"

Forward = Callable[[Tensor], Any]
"""Runs a model on a batch."""


def require_installed(section: LatencySection) -> None:
    """Check that the packages which a section's back ends need are installed.

    Raises:
        EvaluationError: When one is missing; the message names it.
    """
    if "onnxruntime" in section.backends:
        try:
            require_packages()
        except ArtifactError as error:
            raise EvaluationError(f"{_FIELD} has onnxruntime: {error}") from error


def require_backends(section: LatencySection, device: torch.device | str) -> None:
    """Check, before anything is pruned, that every back end of a section works in this process.

    Raises:
        EvaluationError: When one does not; the message names the field and what is allowed.
    """
    device = torch.device(device)
    require_installed(section)
    if "onnxruntime" in section.backends and device.type != "cpu":
        raise EvaluationError(
            f"{_FIELD} has onnxruntime, which is timed on CPUs only, and the device is {device}; "
            "allowed there: eager, compile"
        )
    if "compile" in section.backends:
        _require_compiler(device)


@lru_cache
def _require_compiler(device: torch.device) -> None:
    _compiled({"probe": nn.Linear(2, 2).to(device)}, torch.zeros(1, 2, device=device))


def prepare(
    backend: str, models: Mapping[str, nn.Module], example_input: Tensor, threads: int
) -> Callable[[Tensor], Mapping[str, Forward]]:
    """Return a function that takes a batch and returns, by model, the forward pass for batches of that size.

    Args:
        backend: `eager`, `compile` or `onnxruntime`.
        models: The models by name, in evaluation mode; they are not changed.
        example_input: Images [N, ...].
        threads: CPU threads of onnxruntime; the other back ends use torch's.

    Raises:
        EvaluationError: When the back end does not work here, or not with one of the models.
    """
    if backend == "compile":
        return lambda batch: _compiled(models, batch)
    forwards = dict(models) if backend == "eager" else _sessions(models, example_input, threads)
    return lambda batch: forwards


def _compiled(models: Mapping[str, nn.Module], batch: Tensor) -> Mapping[str, Forward]:
    """Compile models for one batch size.

    Earlier compilations are dropped first: models of one class share torch's limit of recompilations, beyond which they
    would silently run eagerly.
    """
    torch.compiler.reset()
    forwards = {name: torch.compile(model, dynamic=False) for name, model in models.items()}
    try:
        with torch.inference_mode():
            for forward in forwards.values():
                forward(batch)
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise EvaluationError(
            f"{_FIELD} has compile, and torch.compile fails here ({reason}); it needs a C++ compiler on CPUs and "
            "triton on GPUs, allowed without them: eager, onnxruntime"
        ) from error
    return forwards


def _sessions(models: Mapping[str, nn.Module], example_input: Tensor, threads: int) -> Mapping[str, Forward]:
    """Open a CPU session of onnxruntime for each model, which is exported to ONNX first unless it is an ONNX model."""
    forwards: dict[str, Forward] = {}
    for name, model in models.items():
        try:
            require_packages()
            content = model.content if isinstance(model, OnnxModel) else to_onnx(model, example_input)
            run = open_session(content, threads=threads)
        except ArtifactError as error:
            raise EvaluationError(f"{_FIELD} has onnxruntime: the {name} model: {error}") from error
        forwards[name] = run
    return forwards
