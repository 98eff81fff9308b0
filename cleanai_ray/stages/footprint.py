"""The memory that a trial takes on its device: measured on a GPU, estimated elsewhere."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cleanai_ray.config.study import Study
from cleanai_ray.nn.activation_size import activation_sizes
from cleanai_ray.nn.calls import tensors_in
from cleanai_ray.nn.copying import copied
from cleanai_ray.nn.faults import is_device_fault, release_memory
from cleanai_ray.stages.workspace import Workspace

_CONTEXT_BYTES = 3 * 2**28
"""What a process holds on a GPU before the first tensor: CUDA's context, and the libraries' kernels and workspaces."""

_HEADROOM = 1.5
"""Repair keeps some activations, libraries try algorithms, and an allocator's blocks are never quite full."""

_COPIES, _TRAINED_COPIES = 2, 6
"""Copies of the weights: the dense and the pruned model; in training gradients, two moments and the best epoch too."""


@dataclass(frozen=True, kw_only=True)
class Footprint:
    """The memory that a trial takes on its device.

    Attributes:
        needed_bytes: All of it, with some headroom.
        batch_size: Images of the batch it was found for.
        trains: Whether the batch was trained on.
        is_measured: Whether it was measured, on a GPU, or estimated from the sizes of activations.
    """

    needed_bytes: int
    batch_size: int
    trains: bool
    is_measured: bool


def batch_of(study: Study) -> tuple[int, bool]:
    """Return the images of a study's most demanding batch, and whether trials train on it."""
    tune = study.finetune
    if tune.epochs or tune.between_steps:
        return max(tune.batch_size or study.data.batch_size, study.data.batch_size), True
    return study.data.batch_size, study.repair.distill_steps > 0 or study.repair.compensation == "blockwise"


def measure_footprint(workspace: Workspace, model: nn.Module) -> Footprint:
    """Return the memory that a trial takes, from one batch through the dense model, which no pruned one exceeds.

    Args:
        workspace: The opened study.
        model: The dense model on the workspace's device; its weights are not changed.
    """
    batch_size, trains = batch_of(workspace.study)
    example = workspace.example_input()
    peak = None
    if workspace.device.type == "cuda":
        peak = measured_peak(model, example, batch_size, trains=trains)
    needed = estimated_peak(model, example, batch_size, trains=trains) if peak is None else peak
    return Footprint(
        needed_bytes=int(_CONTEXT_BYTES + _HEADROOM * needed),
        batch_size=batch_size,
        trains=trains,
        is_measured=peak is not None,
    )


def estimated_peak(model: nn.Module, example: Tensor, batch_size: int, *, trains: bool) -> int:
    """Return an estimate of the bytes that a batch takes, with the weights.

    Forward, a layer's input and output are alive together, and a third tensor beside them in a residual block. In
    training, the output of every innermost module is.

    Args:
        model: The model.
        example: One input [1, C, H, W].
        batch_size: Images of the batch.
        trains: Whether the batch is trained on.
    """
    with torch.no_grad():
        sizes = activation_sizes(model, lambda: model(example))
    alive = sum(sizes) if trains else 3 * max(sizes, default=0)
    own = example.numel() * example.element_size()
    return _weight_bytes(model) * (_TRAINED_COPIES if trains else _COPIES) + batch_size * (alive + own)


def measured_peak(model: nn.Module, example: Tensor, batch_size: int, *, trains: bool) -> int | None:
    """Return the bytes that torch allocates at most on the example's GPU for a batch, with the weights.

    Args:
        model: The model, on a GPU.
        example: One input [1, C, H, W], on the same GPU.
        batch_size: Images of the batch.
        trains: Whether the batch is trained on.

    Returns:
        The bytes; None if the model cannot be run so, for lack of memory for instance.
    """
    device = example.device
    weights = _weight_bytes(model)
    before = torch.cuda.memory_allocated(device)
    try:
        images = example.repeat(batch_size, *[1] * (example.dim() - 1))
        torch.cuda.reset_peak_memory_stats(device)
        if trains:
            _take_training_step(copied(model), images)
        else:
            with torch.no_grad():
                model(images)
        torch.cuda.synchronize(device)
        used = torch.cuda.max_memory_allocated(device) - before
    except (RuntimeError, ValueError, TypeError) as error:  # torch.OutOfMemoryError is a RuntimeError
        if is_device_fault(error):
            raise
        used = None
    if used is None:
        release_memory(device)  # here the error is gone, and with it the frames that held the tensors
        return None
    # What was there before holds the dense weights; the training step's copy, gradients and momentum are in `used`.
    return used + weights * (_TRAINED_COPIES - 3 if trains else _COPIES)


def _take_training_step(model: nn.Module, images: Tensor) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0, momentum=0.9)
    outputs = tensors_in(model(images))
    torch.stack([output.float().square().mean() for output in outputs if output.requires_grad]).sum().backward()
    optimizer.step()


def _weight_bytes(model: nn.Module) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in [*model.parameters(), *model.buffers()])
