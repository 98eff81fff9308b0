"""Exponential moving average of a model's weights and buffers, by `torch.optim.swa_utils`."""

from __future__ import annotations

from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

_Tensors = tuple[Tensor, ...] | list[Tensor]


def weight_average(model: nn.Module, decay: float) -> AveragedModel:
    """Return the moving average of a model that is about to train; call `update_parameters(model)` after every step.

    After every step: average = decay * average + (1 - decay) * weights, starting from the weights before the first
    step. Floating-point buffers (the running statistics of batch-norm) are averaged in the same way, so that they match
    the averaged weights; other buffers are copied.

    Args:
        model: The model that trains.
        decay: Share of the old average that stays, in (0, 1).
    """
    average_floats = get_ema_multi_avg_fn(decay)

    def update(averages: _Tensors, values: _Tensors, num_averaged: Tensor | int) -> None:
        if averages[0].is_floating_point():
            average_floats(averages, values, num_averaged)
        else:
            for average, value in zip(averages, values, strict=True):
                average.copy_(value)

    average = AveragedModel(model, multi_avg_fn=update, use_buffers=True).requires_grad_(False)
    average.n_averaged.fill_(1)  # torch would otherwise replace the initial weights by those of the first step
    return average
