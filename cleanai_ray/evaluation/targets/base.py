"""The interface of the back ends that a target can name: they prepare a model, and time one run of it."""

from __future__ import annotations

import importlib
import shlex
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from cleanai_ray.config.target import TargetSection
from cleanai_ray.deploy.bfloat16 import Bfloat16Model
from cleanai_ray.deploy.onnx_model import OnnxModel
from cleanai_ray.errors import EvaluationError
from cleanai_ray.nn.copying import copied
from cleanai_ray.nn.hooks import require_no_hooks

_NANOSECONDS_PER_MILLISECOND = 1e6

Run = Callable[[], Any]
"""Runs a prepared model once, on the example that it was prepared with."""


class TargetBackend(ABC):
    """One back end. Subclasses are registered in `cleanai_ray.registry.TARGETS`, one a file.

    An instance prepares the models of one comparison, which are then timed in turns. Its errors do not say which field
    of a study named it: whoever opens it does (`evaluation.target` or `evaluation.latency.backends`).

    Attributes:
        device_types: Devices that it runs on; if that is the CPU alone, it does so in a study on GPUs as well.
        packages: Modules that it imports, each with the distribution to install.

    Args:
        target: What to run models in.
        device: The study's device.
        quick: True to translate models without checks and with whatever exporter is fastest, where there are many of
            one architecture to compare with each other; and to count the time of the calling thread, where it is the
            only one that computes.

    Raises:
        EvaluationError: When the target cannot run here; the message names the package or device that lacks.
    """

    device_types: ClassVar[tuple[str, ...]] = ("cpu", "cuda")
    packages: ClassVar[tuple[tuple[str, str], ...]] = ()

    def __init__(self, target: TargetSection, device: torch.device, *, quick: bool = False) -> None:
        self.require_packages()
        self.target = target
        self.quick = quick
        self.device = torch.device("cpu") if self.device_types == ("cpu",) else device
        if self.device.type not in self.device_types:
            raise EvaluationError(
                f"it needs a CUDA device, and the device is {device}; allowed here: torch, torch_compile, onnxruntime"
            )
        # Work of one thread on the CPU takes the same time whoever else computes, if its own time alone is counted.
        counts_own = quick and target.threads == 1 and self.device.type == "cpu"
        self._clock = time.thread_time_ns if counts_own else time.perf_counter_ns

    @classmethod
    def require_packages(cls) -> None:
        """Check that the packages that the back end imports are installed.

        Raises:
            EvaluationError: When one is missing; the message names it.
        """
        for module, distribution in cls.packages:
            try:
                importlib.import_module(module)
            except ImportError as error:
                raise EvaluationError(
                    f"it needs the package {module}, which is not installed: pip install {shlex.quote(distribution)}"
                ) from error

    def translated(self, model: nn.Module, example: Tensor) -> nn.Module:
        """Return a model from which `prepare` is quick for every batch size: itself, unless it must be translated.

        Raises:
            EvaluationError: When the back end cannot run the model.
        """
        return model

    @abstractmethod
    def prepare(self, model: nn.Module, example: Tensor) -> Run:
        """Return a function that runs a model once on a batch; neither is changed.

        Args:
            model: The model.
            example: Images [N, ...], float32, or token numbers, integers; contiguous, anywhere.

        Raises:
            EvaluationError: When the back end cannot run the model.
        """

    def milliseconds(self, run: Run) -> float:
        """Run a prepared model once, until the device has finished, and return the milliseconds that it took."""
        self._finish()
        start = self._clock()
        run()
        self._finish()
        return (self._clock() - start) / _NANOSECONDS_PER_MILLISECOND

    def _finish(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def _moved(self, model: nn.Module, example: Tensor) -> tuple[nn.Module, Tensor]:
        """Return copies of a model and a batch on the device, in the target's data type and layout.

        A model that was quantised to bfloat16 keeps its data type, and casts the batch itself.

        Raises:
            EvaluationError: When a hook is left on the model, or it is not torch's.
        """
        require_no_hooks(model)
        if isinstance(model, OnnxModel):
            raise EvaluationError("an ONNX model runs in onnxruntime alone")
        dtype = getattr(torch, self.target.dtype)
        own = None if isinstance(model, Bfloat16Model) else dtype
        moved = copied(model).eval().requires_grad_(False).to(device=self.device, dtype=own)
        batch = in_type(example, dtype).to(self.device)
        if self.target.layout == "channels_last":
            moved = moved.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            batch = batch.contiguous(memory_format=torch.channels_last) if batch.dim() == 4 else batch
        return moved, batch


def in_type(batch: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a batch in a floating-point type; one of integers, which are no measurements but numbers, as it is."""
    return batch.detach().to(dtype) if batch.is_floating_point() else batch
