"""Layers that only training runs, as auxiliary heads: a model must still run in training mode when it is smaller."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cleanai_ray.graph.explaining import explain
from cleanai_ray.nn.copying import copied


@dataclass(frozen=True, eq=False)
class TrainingPass:
    """Runs a model in training mode, if training runs layers that evaluation does not.

    Attributes:
        inputs: Two samples, as batch-norms need in training.
        layers: The layers that only training runs.
    """

    inputs: Tensor
    layers: tuple[str, ...]

    @classmethod
    def of(cls, model: nn.Module, inputs: Tensor) -> TrainingPass | None:
        """Return the pass of a model; None if evaluation runs all that training does, or training needs more.

        Args:
            model: The model; it is left as it is.
            inputs: Samples of its input.
        """
        pair = torch.cat([inputs[:1], inputs[:1]])
        try:
            more = _ran(copied(model).train(), pair) - _ran(copied(model).eval(), pair)
        except Exception:  # It needs targets, or several devices.
            return None
        layers = tuple(name for name, _ in model.named_modules() if name in more)
        return cls(pair, layers) if layers else None

    def fault(self, smaller: nn.Module) -> str | None:
        """Return why a smaller model does not run in training mode, or None; the model is left as it is."""
        model = copied(smaller).train()
        try:
            _ran(model, self.inputs)
        except Exception as error:
            return f"a layer that only training runs reads it, which cannot be narrowed: {explain(error, model)}"
        return None


def _ran(model: nn.Module, inputs: Tensor) -> set[str]:
    """Return the names of the layers with parameters that ran."""
    ran: set[str] = set()
    for name, module in model.named_modules():
        if next(module.parameters(recurse=False), None) is not None:
            module.register_forward_pre_hook(lambda _, args, name=name: ran.add(name))
    with torch.no_grad(), torch.random.fork_rng(devices=[inputs.device] if inputs.is_cuda else []):
        model(inputs)
    return ran
