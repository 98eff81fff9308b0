"""Gradients of the loss during calibration, as sums in which signs do not cancel: magnitudes and squares."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from cleanai_ray.errors import CalibrationError
from cleanai_ray.nn.modes import to_device

Loss = Callable[[Tensor, Tensor], Tensor]
"""(outputs, targets) -> mean loss."""

ModelLoss = Callable[[nn.Module, Tensor, Any], Tensor]
"""(model, inputs, targets) -> mean loss."""


def loss_of_output(loss: Loss) -> ModelLoss:
    """Return a loss of a model's output as one of the model."""
    return lambda model, inputs, targets: loss(model(inputs), targets)


def add_magnitudes(model: nn.Module, images: Tensor, targets: Any, loss: ModelLoss, sums: dict[str, Tensor]) -> None:
    """Run a batch, and add its size times the magnitude of the gradient of its mean loss to `sums`."""
    for name, gradient in _gradients(model, images, targets, loss).items():
        _add(sums, name, gradient.double().abs() * len(images))


def add_squares(model: nn.Module, images: Tensor, targets: Any, loss: ModelLoss, sums: dict[str, Tensor]) -> None:
    """Run the samples of a batch one by one, and add the square of the gradient of each one's loss to `sums`.

    Their mean is the diagonal of the empirical Fisher matrix, which approximates that of the Hessian. The square of a
    batch's gradient would not do: it depends on how samples are cut into batches. Each sample takes a backward pass.
    """
    for position in range(len(images)):
        chosen = slice(position, position + 1)
        target = None if targets is None else targets[chosen]
        for name, gradient in _gradients(model, images[chosen], target, loss).items():
            _add(sums, name, gradient.double().square())


def _gradients(model: nn.Module, images: Tensor, targets: Any, loss: ModelLoss) -> dict[str, Tensor]:
    if targets is None:
        raise CalibrationError("gradients need batches of (images, targets), and this batch has no targets")
    parameters = {name: value for name, value in model.named_parameters() if value.is_floating_point()}
    flags = {name: value.requires_grad for name, value in parameters.items()}
    try:
        for value in parameters.values():  # A frozen layer is pruned as any other, and has gradients for that.
            value.requires_grad_(True)
        with torch.enable_grad():
            mean = loss(model, images, to_device(targets, images.device))
            found = torch.autograd.grad(mean, list(parameters.values()), allow_unused=True)
    finally:
        for name, value in parameters.items():
            value.requires_grad_(flags[name])
    pairs = zip(parameters.items(), found, strict=True)
    return {name: torch.zeros_like(own) if value is None else value.detach() for (name, own), value in pairs}


def _add(sums: dict[str, Tensor], name: str, value: Tensor) -> None:
    sums[name] = sums[name] + value if name in sums else value
