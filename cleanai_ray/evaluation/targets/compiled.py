"""torch.compile."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor, nn

from cleanai_ray.config.target import TargetSection
from cleanai_ray.errors import EvaluationError
from cleanai_ray.evaluation.targets.base import Run, TargetBackend
from cleanai_ray.registry import TARGETS


@TARGETS.register("torch_compile")
class CompiledTarget(TargetBackend):
    """torch.compile, for one batch size.

    Opening it compiles a layer of two channels, once in a process, to see that there is a compiler. Earlier
    compilations are dropped when an instance is made: models of one class share torch's limit of recompilations, beyond
    which they would silently run eagerly. So an instance prepares few models.
    """

    def __init__(self, target: TargetSection, device: torch.device, *, quick: bool = False) -> None:
        super().__init__(target, device, quick=quick)
        _require_compiler(self.device)
        torch.compiler.reset()

    def prepare(self, model: nn.Module, example: Tensor) -> Run:
        """Return a function that calls the compiled model in inference mode."""
        return _compiled(*self._moved(model, example))


@lru_cache
def _require_compiler(device: torch.device) -> None:
    _compiled(nn.Linear(2, 2).to(device), torch.zeros(1, 2, device=device))


def _compiled(model: nn.Module, batch: Tensor) -> Run:
    compiled = torch.compile(model, dynamic=False)

    def run() -> object:
        with torch.inference_mode():
            return compiled(batch)

    try:
        run()
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise EvaluationError(
            f"torch.compile fails here ({reason}); it needs a C++ compiler on CPUs and triton on GPUs, allowed without "
            "them: torch without compilation, or onnxruntime"
        ) from error
    return run
