"""Training of a narrower network from random weights, with the compute that the dense model and fine-tuning took.

Liu et al. 2019, "Rethinking the Value of Network Pruning": the same epochs (Scratch-E), or as many epochs of the
smaller model as cost the same multiply-accumulates (Scratch-B).
"""

from __future__ import annotations

import math

import torch
from torch import nn

from cleanai_ray.config.digests import digest
from cleanai_ray.config.sections import HELD_BACK, TrainSection
from cleanai_ray.config.study import Study, Trial
from cleanai_ray.errors import ModelError
from cleanai_ray.models import build_model
from cleanai_ray.nn.complexity import measure_complexity
from cleanai_ray.nn.open_attention import open_attention
from cleanai_ray.pruning.plan import PruningPlan
from cleanai_ray.pruning.saved_model import apply_plan
from cleanai_ray.stages.workspace import Workspace
from cleanai_ray.training.context import TrainingContext
from cleanai_ray.training.data import TrainingData
from cleanai_ray.training.fine_tune import FineTuneResult
from cleanai_ray.training.train import train_dense


def with_random_weights(workspace: Workspace, trial: Trial, plan: PruningPlan) -> nn.Module:
    """Return the network that a plan leaves, with random weights that depend on the seeds alone.

    They are those of a new dense model at the channels that stay. The weights of convolutions and linear layers are
    scaled by sqrt(inputs before / inputs now), since the usual initialisations have a variance inverse to these.

    Args:
        workspace: The opened study.
        trial: The control.
        plan: The plan of its widths.
    """
    section = workspace.study.model.model_copy(update={"weights": None, "train": None})
    fresh = build_model(section, seed=_seed(workspace.study, trial))
    _require_random(fresh, build_model(section, seed=_seed(workspace.study, trial) + 1))
    model = apply_plan(fresh, plan)
    before = dict(open_attention(fresh).named_modules())
    with torch.no_grad():
        for name, module in model.named_modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)) and name in before:
                weight = before[name].weight
                assert isinstance(weight, torch.Tensor)
                module.weight.mul_(math.sqrt(weight[0].numel() / module.weight[0].numel()))
    return model.to(workspace.device)


def _require_random(first: nn.Module, second: nn.Module) -> None:
    """Check that two networks of different seeds have different weights.

    Raises:
        ModelError: When a convolution or a linear layer has the same ones.
    """
    others = dict(second.named_modules())
    for name, module in first.named_modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)) and module.weight.any():
            other = others[name].weight
            if isinstance(other, torch.Tensor) and torch.equal(module.weight, other):
                raise ModelError(
                    f"layer '{name}' has the same weights whatever the seed is, so model.factory or model.options sets "
                    "them; needed for a control that is trained from scratch: random weights"
                )


def _seed(study: Study, trial: Trial) -> int:
    """Return the seed of weights and sample order: another one than the dense model's, whatever the trial's is."""
    assert study.model.train is not None
    return int(digest(["anew", study.model.train.seed, trial.seed])[:8], 16)


def anew_section(study: Study, trial: Trial, macs_share: float, tuned: float) -> TrainSection:
    """Return the recipe: the dense model's, with as many epochs as its training and the trials' fine-tuning allow.

    Args:
        study: The study.
        trial: The control.
        macs_share: Multiply-accumulates of the narrower network, as a share of the dense model's.
        tuned: Passes over the training images that fine-tuning amounts to.
    """
    recipe = study.model.train
    assert recipe is not None
    assert trial.control is not None
    share = macs_share if trial.control.compute == "flops" else 1.0
    epochs = max(1, round(recipe.epochs / share + tuned))
    return recipe.model_copy(update={"epochs": epochs, "seed": _seed(study, trial)})


def _passes(workspace: Workspace) -> float:
    """Return the passes over the training images that the study's fine-tuning amounts to."""
    section, roles = workspace.study.finetune, workspace.roles
    if section.data == "training":
        return float(section.epochs)
    return section.epochs * (1 - 1 / HELD_BACK) * len(roles.calibration) / len(roles.training)


def train_anew(
    workspace: Workspace, trial: Trial, model: nn.Module, dense: nn.Module, context: TrainingContext
) -> FineTuneResult:
    """Train a control in place, as the dense model was; every process of the context calls it, with the same model.

    Args:
        workspace: The opened study.
        trial: The control.
        model: The narrower network, with random weights.
        dense: The dense model.
        context: The context of this process.
    """
    example, share = workspace.example_input(), (context.rank, context.world_size)
    macs, macs_dense = (measure_complexity(each, example).macs for each in (model, dense))
    section = anew_section(workspace.study, trial, macs / macs_dense, _passes(workspace))
    epoch_batches, steps = workspace.training_batches(section.seed, section.batch_size, share=share)
    return train_dense(
        model,
        section=section,
        data=TrainingData(
            train_batches=epoch_batches,
            steps_per_epoch=steps,
            validation_batches=workspace.validation_batches(share),
            later_batches=epoch_batches,
            start_competes=False,
        ),
        context=context,
    )
