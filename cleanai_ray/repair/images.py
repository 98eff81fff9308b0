"""Calibration images: reading them from batches, and running a model over them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cleanai_ray.config.sections import HELD_BACK
from cleanai_ray.errors import CalibrationError, CleanAIError
from cleanai_ray.nn.half import HalfBatches
from cleanai_ray.statistics.batch_forms import in_form

Batch = Tensor | tuple[Tensor, Any]
Batches = Iterable[Batch] | Callable[[], Iterable[Batch]]


class Reached(Exception):
    """Raised to end a forward pass once everything it was run for has been read."""


def device_of(model: nn.Module) -> torch.device:
    """Return the device of a model's parameters."""
    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))


def read_images(batches: Batches) -> list[Tensor]:
    """Read all batches, and return their images.

    Raises:
        CalibrationError: When there are none.
    """
    opened = batches() if callable(batches) else batches
    images = [_images(batch) for batch in opened]
    images = [batch for batch in images if len(batch)]
    if not images:
        raise CalibrationError("repair reads calibration images, and the batches given hold none")
    return images


def _images(batch: Any) -> Tensor:
    found = in_form(batch)
    return found if isinstance(found, Tensor) else found[0]


def walk(batches: Iterable[Batch], model: nn.Module, first: int = 0) -> Iterator[tuple[range, Tensor]]:
    """Yield the sample numbers and the images of each batch, on the model's device."""
    device = device_of(model)
    for batch in batches.on(device) if isinstance(batches, HalfBatches) else batches:
        images = _images(batch)
        yield range(first, first + len(images)), images.to(device)
        first += len(images)


def run(model: Callable[[Tensor], Any], images: Tensor, samples: range) -> Any:
    """Run a model, or a part of it, on a batch and return its output.

    Raises:
        CalibrationError: When the model cannot be run; the message says which samples the batch holds.
    """
    try:
        return model(images)
    except (CleanAIError, Reached):
        raise
    except Exception as error:
        raise CalibrationError(
            f"repair stopped at samples {samples.start} to {samples.stop - 1}: {' '.join(str(error).split())}"
        ) from error


def is_held_back(positions: np.ndarray) -> np.ndarray:
    """Return which images are held back to judge by, from their places among those that repair reads: every fifth."""
    return positions % HELD_BACK == HELD_BACK - 1
