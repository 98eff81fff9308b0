"""Optimizers, with weight decay only where it belongs."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from cleanai_ray.config.finetune import FineTuneSection
from cleanai_ray.training.context import TrainingError

_NORMS = (_NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Split a model's trainable parameters into those that decay and those that do not.

    Norms, biases and every other vector or scalar do not decay. A shared parameter is in one group once.

    Raises:
        TrainingError: When no parameter is trainable.
    """
    decayed: list[nn.Parameter] = []
    exempt: list[nn.Parameter] = []
    seen: set[int] = set()
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if id(parameter) in seen or not parameter.requires_grad:
                continue
            seen.add(id(parameter))
            is_exempt = isinstance(module, _NORMS) or name.endswith("bias") or parameter.ndim <= 1
            (exempt if is_exempt else decayed).append(parameter)
    if not seen:
        raise TrainingError(f"{type(model).__name__} has 0 trainable parameters, at least 1 is needed")
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": exempt, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def build_optimizer(model: nn.Module, section: FineTuneSection) -> torch.optim.Optimizer:
    """Return SGD with Nesterov momentum, or AdamW, over `parameter_groups`; on CUDA all of it in one kernel."""
    groups = parameter_groups(model, section.weight_decay)
    fused = True if all(one.is_cuda for group in groups for one in group["params"]) else None
    if section.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=section.learning_rate, fused=fused)
    return torch.optim.SGD(
        groups, lr=section.learning_rate, momentum=section.momentum, nesterov=section.momentum > 0, fused=fused
    )
