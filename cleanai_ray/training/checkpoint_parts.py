"""What a training's checkpoint holds, and whose it is."""

from __future__ import annotations

import hashlib
from typing import Any

from torch import Tensor, nn

from cleanai_ray.config.finetune import FineTuneSection
from cleanai_ray.training.part import TrainingPart


def copied_to_cpu(value: Any) -> Any:
    """Return nested containers with every tensor copied to the CPU."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: copied_to_cpu(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(copied_to_cpu(item) for item in value)
    return value


def epoch_seed(seed: int, epoch: int, rank: int) -> int:
    """Return the seed of everything random in one epoch and process."""
    digest = hashlib.sha256(f"{seed}/{epoch}/{rank}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def fingerprint(model: nn.Module, section: FineTuneSection, steps_per_epoch: int, seed: int, part: TrainingPart) -> str:
    """Return a digest of what a training depends on; a checkpoint of another one is passed over."""
    shapes = [f"{name}{tuple(value.shape)}{value.dtype}" for name, value in model.state_dict().items()]
    recipe = section.model_dump_json(exclude={"num_workers", "between_steps", "data", "checkpoint_minutes"})
    place = [f"{part.name}/{part.epochs_before}"] if part.name else []
    inputs = [recipe, str(steps_per_epoch), str(seed), *place, *shapes]
    return hashlib.sha256("\n".join(inputs).encode()).hexdigest()
