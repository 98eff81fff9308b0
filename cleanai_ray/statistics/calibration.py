"""One pass of a model over calibration samples, or two."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from cleanai_ray.errors import CalibrationError, CleanAIError
from cleanai_ray.nn.modes import evaluation_mode
from cleanai_ray.statistics.channel_statistics import ActivationStatistics
from cleanai_ray.statistics.gradients import Loss, ModelLoss, add_magnitudes, add_squares
from cleanai_ray.statistics.histogram import ActivationHistograms, Ranges
from cleanai_ray.statistics.histogram_recorder import HistogramRecorder
from cleanai_ray.statistics.recorder import ActivationRecorder

Batch = Tensor | tuple[Tensor, Any]


def calibrate(
    model: nn.Module,
    batches: Iterable[Batch],
    *,
    threshold: float = 0.0,
    top_k: int = 10,
    sections: int | None = None,
    outputs: bool = False,
    gradients: bool = False,
    squared_gradients: bool = False,
    loss: Loss | None = None,
    model_loss: ModelLoss | None = None,
) -> ActivationStatistics:
    """Run a model over batches and return the statistics of its activations. The model is left as it was.

    Args:
        model: The model; it is run in eval mode on the device of its parameters.
        batches: Images [N, ...], or pairs (images, targets), of which targets are used for gradients only. With
            `sections`, they are read twice; a generator is read into memory then.
        threshold: Mean activation above which a sample counts as active for the metric `frequency`.
        top_k: How many channels of a layer count as the strongest of a sample for the metric `top_k`.
        sections: Count activations in this many sections of each layer's range, for the metrics `k_multisection` and
            `entropy`, in a second pass; None: do not. Statistics of shards are merged first, and then `count_sections`
            is called on the shards.
        outputs: Also record the raw outputs of the layers (`observe: output`), and not only what layers receive.
        gradients: Also collect the magnitude of the loss gradient of every parameter, for gradient-based methods. Near
            a minimum the gradient of all samples together is about zero, and tells nothing; Molchanov et al. (2019)
            therefore take the magnitude in each minibatch, and average. It depends on how samples are cut into batches.
        squared_gradients: Also collect the square of the loss gradient of every sample, for the method `hessian`. It
            takes a pass of its own for every sample.
        loss: Mean loss of (output, targets); cross-entropy by default.
        model_loss: Mean loss of (model, inputs, targets), in place of `loss`.

    Raises:
        CalibrationError: When an argument is not allowed, or a batch cannot be run; the message says which samples it
            holds.
    """
    if top_k < 1:
        raise CalibrationError(f"top_k is {top_k}; allowed: an integer of at least 1")
    if sections is not None:
        _check_sections(sections)
        batches = list(batches) if isinstance(batches, Iterator) else batches
    statistics = _first_pass(
        model,
        batches,
        ActivationRecorder(model, threshold=threshold, top_k=top_k, outputs=outputs),
        gradients=gradients,
        squared_gradients=squared_gradients,
        loss=model_loss or _of_output(loss or functional.cross_entropy),
    )
    if sections is None:
        return statistics
    return statistics.with_histograms(count_sections(model, batches, statistics.ranges, sections=sections))


def _of_output(loss: Loss) -> ModelLoss:
    return lambda model, inputs, targets: loss(model(inputs), targets)


def _first_pass(
    model: nn.Module,
    batches: Iterable[Batch],
    recorder: ActivationRecorder,
    *,
    gradients: bool,
    squared_gradients: bool,
    loss: ModelLoss,
) -> ActivationStatistics:
    magnitudes: dict[str, Tensor] = {}
    squares: dict[str, Tensor] = {}

    def run(images: Tensor, targets: Any) -> None:
        if gradients:
            add_magnitudes(model, images, targets, loss, magnitudes)
        else:
            _forward(model, images)
        if squared_gradients:
            with recorder.paused():
                add_squares(model, images, targets, loss, squares)

    with evaluation_mode(model), recorder:
        number = _run_all(model, batches, run)
    return replace(
        recorder.statistics(),
        gradients={name: value.cpu() for name, value in magnitudes.items()},
        squared_gradients={name: value.cpu() for name, value in squares.items()},
        num_gradient_samples=number if gradients or squared_gradients else 0,
    )


def count_sections(
    model: nn.Module, batches: Iterable[Batch], ranges: Ranges, *, sections: int
) -> ActivationHistograms:
    """Run a model over batches again, and count each channel's activations by section of its layer's range.

    This is the second pass of a calibration in shards: `ranges` are those of the merged statistics of all shards, and
    `statistics.with_histograms` takes the merged histograms in. The model is left as it was.

    Args:
        model: The model that the ranges were measured on.
        batches: Images [N, ...], or pairs (images, targets).
        ranges: `ActivationStatistics.ranges`.
        sections: Number of sections.

    Raises:
        CalibrationError: When an argument is not allowed, or a batch cannot be run; the message says which samples it
            holds.
    """
    _check_sections(sections)
    with evaluation_mode(model), HistogramRecorder(model, ranges, sections=sections) as recorder:
        _run_all(model, batches, lambda images, _: _forward(model, images))
        return recorder.histograms()


def _check_sections(sections: int) -> None:
    if sections < 2:
        raise CalibrationError(f"sections is {sections}; allowed: an integer of at least 2")


@torch.no_grad()
def _forward(model: nn.Module, images: Tensor) -> None:
    model(images)


def _run_all(model: nn.Module, batches: Iterable[Batch], run: Callable[[Tensor, Any], None]) -> int:
    """Give every batch to `run`, its images on the model's device, and return the number of samples."""
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    start = 0
    for batch in _checked(batches):
        images, targets = (batch, None) if isinstance(batch, Tensor) else (batch[0], batch[1])
        end = start + len(images)
        try:
            run(images.to(device), targets)
        except Exception as error:
            raise CalibrationError(
                f"calibration stopped at samples {start} to {end - 1}: {' '.join(str(error).split())}"
            ) from error
        start = end
    return start


def _checked(batches: Iterable[Batch]) -> Iterator[Batch]:
    iterator = iter(batches)
    position = 0
    while True:
        try:
            batch = next(iterator)
        except StopIteration:
            return
        except CleanAIError:
            raise
        except Exception as error:
            raise CalibrationError(f"calibration stopped: batch {position} cannot be read: {error}") from error
        yield batch
        position += 1
