"""Batch-norm over the global batch, where several processes train and each sees only its share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed.nn.functional as collective
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


class GlobalBatchNorm(_BatchNorm):
    """A batch-norm whose mean and variance in training are those of the shares of all processes.

    torch's SyncBatchNorm does the same, but on accelerators only. The mean is computed first and the centred squares
    after it, for accuracy; the gradient flows through both sums, and shares may differ in size.
    """

    def forward(self, values: Tensor) -> Tensor:
        """Normalise values [N, C, ...]."""
        if not self.training or self.running_mean is None or self.running_var is None:
            return nn.functional.batch_norm(
                values, self.running_mean, self.running_var, self.weight, self.bias, self.training, 0.0, self.eps
            )
        others = [0, *range(2, values.ndim)]
        shape = [1, -1, *[1] * (values.ndim - 2)]
        count = values.new_full((1,), values.numel() / values.shape[1])
        total = collective.all_reduce(torch.cat([values.sum(others), count]))
        num_values = total[-1].detach()
        mean = total[:-1] / num_values
        centred = values - mean.view(shape)
        variance = collective.all_reduce(centred.square().sum(others)) / num_values
        self._track(mean.detach(), variance.detach(), num_values)
        scaled = centred * torch.rsqrt(variance + self.eps).view(shape)
        return scaled * self.weight.view(shape) + self.bias.view(shape) if self.affine else scaled

    def _check_input_dim(self, input: Tensor) -> None:
        pass

    def _track(self, mean: Tensor, variance: Tensor, num_values: Tensor) -> None:
        """Update the running statistics as torch does: with the unbiased variance."""
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        share = self.momentum if self.momentum is not None else 1.0 / float(self.num_batches_tracked)
        self.running_mean.lerp_(mean, share)
        self.running_var.lerp_(variance * num_values / (num_values - 1).clamp(min=1), share)


@contextmanager
def global_batch_norm(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Within the context every batch-norm of a model takes its statistics from the global batch.

    Only the class of the modules changes meanwhile: their names, parameters and buffers stay.

    Args:
        model: The model of this process; all processes have the same.
        device: Where it trains: torch's SyncBatchNorm on CUDA, `GlobalBatchNorm` elsewhere.
    """
    found = {module: type(module) for module in model.modules() if isinstance(module, _BatchNorm)}
    for module in found:
        if device.type == "cuda":
            module.process_group = None  # type: ignore[assignment]  # that of all processes
            module.__class__ = nn.SyncBatchNorm
        else:
            module.__class__ = GlobalBatchNorm
    try:
        yield
    finally:
        for module, kind in found.items():
            module.__class__ = kind
