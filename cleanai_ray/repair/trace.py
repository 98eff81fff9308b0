"""The consumers that run, in order, and the batch-norm that directly follows each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from cleanai_ray.nn.calls import tensors_in
from cleanai_ray.nn.consumers import Consumer, is_consumer, observing
from cleanai_ray.nn.modes import HookOwner, evaluation_mode


class _NormTracer(HookOwner):
    """Finds, during one forward pass, the batch-norms whose input is a consumer's output, unchanged."""

    def __init__(self, model: nn.Module, layers: Callable[[nn.Module], bool]) -> None:
        super().__init__()
        self._model = model
        self._layers = layers
        self._outputs: list[tuple[str, Tensor, int, Any]] = []
        self._readings: dict[str, list[tuple[str, Any]]] = {}

    def __enter__(self) -> _NormTracer:
        for name, module in self._model.named_modules():
            if self._layers(module):
                self._handles.append(module.register_forward_hook(self._after_consumer(name)))
            elif isinstance(module, _BatchNorm) and module.running_mean is not None:
                self._handles.append(module.register_forward_pre_hook(self._before_norm(name)))
        return self

    def _after_consumer(self, name: str) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            if isinstance(output, Tensor):
                self._outputs.append((name, output, output._version, output.grad_fn))

        return hook

    def _before_norm(self, name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            reading: tuple[str, Any] = ("", None)
            for producer, output, version, node in self._outputs:
                if output is args[0] and output._version == version:
                    reading = (producer, node)
            self._readings.setdefault(name, []).append(reading)

        return hook

    def norms(self, output: Any) -> dict[str, str]:
        """Return the batch-norm that follows each consumer, if only it reads the output, and it reads nothing else.

        Args:
            output: The model's output.
        """
        uses = _count_uses(output)
        return {
            readings[0][0]: norm
            for norm, readings in self._readings.items()
            if len(readings) == 1 and uses.get(readings[0][1]) == 1
        }


def _count_uses(output: Any) -> dict[Any, int]:
    """Return how many operations read the result of each operation, from the autograd graph."""
    uses: dict[Any, int] = {value.grad_fn: 1 for value in tensors_in(output) if value.grad_fn is not None}
    waiting = list(uses)
    while waiting:
        for node, _ in waiting.pop().next_functions:
            if node is None:
                continue
            if node not in uses:
                waiting.append(node)
            uses[node] = uses.get(node, 0) + 1
    return uses


def sharing_layers(model: nn.Module) -> set[str]:
    """Return the modules that share a parameter with another one."""
    owners: dict[nn.Parameter, list[str]] = {}
    for name, module in model.named_modules():
        for parameter in module.parameters(recurse=False):
            owners.setdefault(parameter, []).append(name)
    return {name for names in owners.values() if len(names) > 1 for name in names}


def trace_consumers(
    model: nn.Module, images: Tensor, layers: Callable[[nn.Module], bool] = is_consumer
) -> list[Consumer]:
    """Run a model twice, and return the consumers that ran, in the order of their first calls.

    Layers that share a parameter are left out: what is good for one of them changes the others.

    Args:
        model: The model; it is left as it was.
        images: A few images, [N, ...]. Tokens work too: they have no gradients, but the parameters' are followed.
        layers: Returns whether a module counts.
    """
    calls: dict[str, list[int]] = {}
    twice: dict[str, list[int]] = {}

    def count(name: str, module: nn.Module, value: Tensor) -> None:
        calls.setdefault(name, []).append(value.numel())

    def count_again(name: str, module: nn.Module, value: Tensor) -> None:
        twice.setdefault(name, []).append(value.numel())

    shared = sharing_layers(model)
    names = [name for name, module in model.named_modules() if layers(module) and name not in shared]
    inputs = images.detach().clone().requires_grad_(images.is_floating_point())
    with (
        evaluation_mode(model),
        torch.enable_grad(),
        _NormTracer(model, layers) as tracer,
        observing(model, names, count),
    ):
        norms = tracer.norms(model(inputs))
    with evaluation_mode(model), torch.no_grad(), observing(model, names, count_again):
        model(torch.cat([images, images]))
    return [
        Consumer(
            name=name,
            num_calls=len(sizes),
            norm=norms.get(name) if len(sizes) == 1 else None,
            reads_samples=twice.get(name) != sizes,
        )
        for name, sizes in calls.items()
    ]
