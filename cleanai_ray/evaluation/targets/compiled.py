"""torch.compile."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cleanai_ray.config.target import TargetSection
from cleanai_ray.errors import EvaluationError
from cleanai_ray.evaluation.targets.base import FIELD, Run, TargetBackend
from cleanai_ray.registry import TARGETS


@TARGETS.register("torch_compile")
class CompiledTarget(TargetBackend):
    """torch.compile, for one batch size.

    Earlier compilations are dropped when an instance is made: models of one class share torch's limit of
    recompilations, beyond which they would silently run eagerly. So an instance prepares few models.
    """

    def __init__(self, target: TargetSection, device: torch.device, *, quick: bool = False) -> None:
        super().__init__(target, device, quick=quick)
        torch.compiler.reset()

    def prepare(self, model: nn.Module, example: Tensor) -> Run:
        """Return a function that calls the compiled model in inference mode."""
        moved, batch = self._moved(model, example)
        compiled = torch.compile(moved, dynamic=False)

        def run() -> object:
            with torch.inference_mode():
                return compiled(batch)

        try:
            run()
        except Exception as error:
            reason = " ".join(str(error).split())[:200]
            raise EvaluationError(
                f"{FIELD} is torch_compile, and torch.compile fails here ({reason}); it needs a C++ compiler on CPUs "
                "and triton on GPUs, allowed without them: torch, onnxruntime"
            ) from error
        return run
