"""Batch-norm recalibration: running statistics that fit the pruned network's activations."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from cleanai_ray.errors import CalibrationError, PruningError
from cleanai_ray.nn.modes import HookOwner, evaluation_mode
from cleanai_ray.repair.images import Batch, Batches, read_images, run, walk
from cleanai_ray.repair.pair import Kept

_RESOLUTION = 1e-6
"""Deviations below this share of a channel's mean may be rounding of float32."""
_TINY = 1e-30


@dataclass(frozen=True, kw_only=True, eq=False)
class NormSums:
    """Sums over the batches that one batch-norm reads; float64, on the CPU.

    Attributes:
        count: Values per channel, over all batches.
        mean_sum: Sum over batches of count x mean, [C].
        variance_sum: Sum over batches of count x unbiased variance within the batch, [C].
    """

    count: int
    mean_sum: Tensor
    variance_sum: Tensor

    @property
    def mean(self) -> Tensor:
        """Mean over all batches, [C]."""
        return self.mean_sum / self.count

    @property
    def variance(self) -> Tensor:
        """Unbiased variance within a batch, averaged over batches, [C]."""
        return self.variance_sum / self.count

    def __add__(self, other: NormSums) -> NormSums:
        return NormSums(
            count=self.count + other.count,
            mean_sum=self.mean_sum + other.mean_sum,
            variance_sum=self.variance_sum + other.variance_sum,
        )


@torch.no_grad()
def collect_norm_sums(model: nn.Module, batches: Iterable[Batch]) -> dict[str, NormSums]:
    """Run a model with batch statistics in every batch-norm, and return sums over what each of them reads.

    Everything else runs in eval mode, and no running statistics are updated: the model is left as it was. A batch that
    gives a batch-norm a single value per channel has no variance, so the running statistics normalise it.

    Args:
        model: The model.
        batches: Images [N, ...], or pairs that begin with images. Sums of shards add up if their batches are cut alike.

    Raises:
        CalibrationError: When a batch cannot be run, or an activation is not finite.
    """
    sums: dict[str, NormSums] = {}

    def add(name: str, count: int, mean: Tensor, variance: Tensor) -> None:
        new = NormSums(count=count, mean_sum=count * mean.double(), variance_sum=count * variance.double())
        sums[name] = sums[name] + new if name in sums else new

    with evaluation_mode(model), ExitStack() as undo:
        for name, module in batch_norms(model).items():
            undo.enter_context(_BatchStatistics(name, module, add))
        for samples, images in walk(batches, model):
            run(model, images, samples)
    for name, value in sums.items():
        if not torch.isfinite(value.variance_sum).all():
            raise CalibrationError(f"the inputs of layer '{name}' are not finite on the calibration samples")
    return {
        name: NormSums(count=value.count, mean_sum=value.mean_sum.cpu(), variance_sum=value.variance_sum.cpu())
        for name, value in sums.items()
    }


class _BatchStatistics(HookOwner):
    """Lets a batch-norm normalise by the statistics of each batch, and tells them, in the one pass that computes both.

    Args:
        name: Its name.
        module: The batch-norm, in eval mode; its running statistics take part only where a batch has no variance.
        tell: `tell(name, values per channel, mean, unbiased variance)` is called for each batch.
    """

    def __init__(self, name: str, module: _BatchNorm, tell: Callable[[str, int, Tensor, Tensor], None]) -> None:
        super().__init__()
        self._name = name
        self._module = module
        self._tell = tell
        self._own = (*_running(module), module.num_batches_tracked, module.momentum)

    def __enter__(self) -> None:
        self._module.momentum = 1.0
        self._module.num_batches_tracked = None
        self._handles.append(self._module.register_forward_pre_hook(self._before))
        self._handles.append(self._module.register_forward_hook(self._after))

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._module.training = False
        module = self._module
        module.running_mean, module.running_var, module.num_batches_tracked, module.momentum = self._own

    def _before(self, module: _BatchNorm, args: tuple[Tensor, ...]) -> tuple[Tensor]:
        module.training = _count(args[0]) > 1
        if module.training:
            module.running_mean, module.running_var = (torch.zeros_like(value) for value in self._own[:2])
        # Of other layouts, torch sums in float32 on a processor: a mean of many values would lose its digits.
        return (args[0].contiguous() if args[0].device.type == "cpu" else args[0],)

    def _after(self, module: _BatchNorm, args: tuple[Tensor, ...], output: Tensor) -> None:
        if module.training:
            self._tell(self._name, _count(args[0]), *_running(module))
            module.running_mean, module.running_var = self._own[:2]
            module.training = False


def _count(value: Tensor) -> int:
    """Return the number of values per channel."""
    return value.numel() // value.shape[1]


def batch_norms(model: nn.Module) -> dict[str, _BatchNorm]:
    """Return the batch-norms of a model that keep running statistics."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, _BatchNorm) and module.running_mean is not None
    }


@torch.no_grad()
def apply_relative(
    dense: nn.Module,
    pruned: nn.Module,
    dense_sums: Mapping[str, NormSums],
    pruned_sums: Mapping[str, NormSums],
    kept_outputs: Kept,
) -> None:
    """Shift the dense running statistics by what pruning changed, and give them to the pruned model.

    mean = running mean + (pruned - dense) mean; variance = running variance x (pruned + eps) / (dense + eps), on the
    kept channels. If pruning changed nothing, nothing changes. Where float32 cannot resolve eps next to a channel's
    mean, the square of its resolution takes the place of eps: the ratio of two roundings means nothing.
    """
    originals = batch_norms(dense)
    for name, module in batch_norms(pruned).items():
        if name not in pruned_sums or name not in dense_sums:
            continue
        before, after = dense_sums[name], pruned_sums[name]
        dense_mean, dense_variance = (value.double().cpu() for value in _running(originals[name]))
        kept = torch.as_tensor(kept_outputs[name]) if name in kept_outputs else torch.arange(len(before.mean))
        floor = (_RESOLUTION * before.mean[kept]).square().clamp_min(max(module.eps, _TINY))
        ratio = (after.variance + floor) / (before.variance[kept] + floor)
        mean, variance = _running(module)
        mean.copy_(dense_mean[kept] + (after.mean - before.mean[kept]))
        variance.copy_(dense_variance[kept] * ratio)


@torch.no_grad()
def apply_reset(pruned: nn.Module, pruned_sums: Mapping[str, NormSums]) -> None:
    """Replace the running statistics by the averages over the batches."""
    for name, module in batch_norms(pruned).items():
        if name in pruned_sums:
            mean, variance = _running(module)
            mean.copy_(pruned_sums[name].mean)
            variance.copy_(pruned_sums[name].variance)


def _running(module: _BatchNorm) -> tuple[Tensor, Tensor]:
    assert module.running_mean is not None
    assert module.running_var is not None
    return module.running_mean, module.running_var


def recalibrate(
    dense: nn.Module, pruned: nn.Module, batches: Batches, *, kind: str = "relative", kept_outputs: Kept
) -> None:
    """Recalibrate the batch-norms of a pruned model in place. Compensation comes before this, not after.

    Args:
        dense: The dense model; it is left as it was.
        pruned: Its pruned copy, which is changed.
        batches: Calibration images; both models read the same batches.
        kind: `relative` (to the dense model's statistics) or `reset`.
        kept_outputs: Dense indices of the channels each narrowed layer kept, batch-norms included.

    Raises:
        PruningError: When the kind is unknown.
        CalibrationError: When a batch cannot be run.
    """
    if kind not in ("relative", "reset"):
        raise PruningError(f"batch_norm is '{kind}'; allowed: relative, reset")
    images = read_images(batches)
    found = collect_norm_sums(pruned, images)
    if kind == "relative":
        apply_relative(dense, pruned, collect_norm_sums(dense, images), found, kept_outputs)
    else:
        apply_reset(pruned, found)
