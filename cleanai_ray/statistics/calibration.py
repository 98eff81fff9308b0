"""Calibration: one or two passes of a model over calibration samples."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from cleanai_ray.errors import CalibrationError, CleanAIError
from cleanai_ray.nn.modes import evaluation_mode
from cleanai_ray.nn.open_attention import open_attention
from cleanai_ray.statistics.batch_forms import Batches, in_form
from cleanai_ray.statistics.channel_statistics import ActivationStatistics
from cleanai_ray.statistics.gradients import ModelLoss, add_magnitudes, add_squares, loss_of_output
from cleanai_ray.statistics.histogram import ActivationHistograms, Ranges
from cleanai_ray.statistics.histogram_recorder import HistogramRecorder
from cleanai_ray.statistics.precision import check_precision, laid_out, running_in
from cleanai_ray.statistics.recorder import ActivationRecorder

Batch = Tensor | tuple[Tensor, Any]


@dataclass(frozen=True, kw_only=True)
class CalibrationOptions:
    """The choice of what a calibration collects.

    Attributes:
        threshold: Mean activation above which a sample counts as active for the metric `frequency`.
        top_k: How many channels of a layer count as the strongest of a sample for the metric `top_k`.
        sections: Number of bins that each layer's range is divided into, to count activations by bin for the metrics
            `k_multisection` and `entropy`, in a second pass; None: no second pass. With several shards, their
            statistics are merged first, and then `count_sections` is called on the shards.
        outputs: Also record the raw outputs of the layers (`observe: output`), and not only what layers receive.
        gradients: Also collect the magnitude of the loss gradient of every parameter, for gradient-based methods. Near
            a minimum the gradient over all samples together is about zero and says nothing; Molchanov et al. (2019)
            therefore average the magnitudes of minibatches. The result depends on how samples are cut into batches.
        squared_gradients: Also collect the square of the loss gradient of every sample, for the method `hessian`. It
            takes a separate backward pass for every sample.
        precision: `float32`: the model is run as it is; `bfloat16`: under autocast and with the channels last, which
            takes half the time on recent GPUs. Activations are added up in float32 and float64 in either case.
    """

    threshold: float = 0.0
    top_k: int = 10
    sections: int | None = None
    outputs: bool = False
    gradients: bool = False
    squared_gradients: bool = False
    precision: str = "float32"


def calibrate(
    model: nn.Module,
    batches: Iterable[Batch],
    options: CalibrationOptions | None = None,
    *,
    loss: ModelLoss | None = None,
) -> ActivationStatistics:
    """Run a model over batches and return the statistics of its activations. The model is left as it was.

    Args:
        model: The model; it is run in eval mode on the device of its parameters.
        batches: Images [N, ...], or pairs (images, targets), whose targets are used for gradients only. With
            `options.sections`, they are read twice; a generator is then read into memory.
        options: What to collect; by default what layers receive.
        loss: Mean loss of (model, inputs, targets), for gradients; the cross-entropy of the output by default.

    Raises:
        CalibrationError: When an option is not allowed, or a batch cannot be run; the message says which samples it
            holds.
    """
    options, model = options or CalibrationOptions(), open_attention(model)
    if options.top_k < 1:
        raise CalibrationError(f"top_k is {options.top_k}; allowed: an integer of at least 1")
    check_precision(options.precision)
    if options.sections is not None:
        _check_sections(options.sections)
        batches = Batches(batches).again()
    statistics = _first_pass(model, batches, options, loss or loss_of_output(functional.cross_entropy))
    if options.sections is None:
        return statistics
    counts = count_sections(model, batches, statistics.ranges, sections=options.sections, precision=options.precision)
    return statistics.with_histograms(counts)


def _first_pass(
    model: nn.Module, batches: Iterable[Batch], options: CalibrationOptions, loss: ModelLoss
) -> ActivationStatistics:
    recorder = ActivationRecorder(model, threshold=options.threshold, top_k=options.top_k, outputs=options.outputs)
    magnitudes: dict[str, Tensor] = {}
    squares: dict[str, Tensor] = {}

    def run(images: Tensor, targets: Any) -> None:
        if options.gradients:
            add_magnitudes(model, images, targets, loss, magnitudes)
        else:
            _forward(model, images)
        if options.squared_gradients:
            with recorder.paused():
                add_squares(model, images, targets, loss, squares)

    with evaluation_mode(model), recorder:
        number = _run_all(model, batches, run, options.precision)
    return replace(
        recorder.statistics(),
        gradients={name: value.cpu() for name, value in magnitudes.items()},
        squared_gradients={name: value.cpu() for name, value in squares.items()},
        num_gradient_samples=number if options.gradients or options.squared_gradients else 0,
    )


def count_sections(
    model: nn.Module, batches: Iterable[Batch], ranges: Ranges, *, sections: int, precision: str = "float32"
) -> ActivationHistograms:
    """Run a model over batches again, and count each channel's activations by bin of its layer's range.

    This is the second pass of a calibration in shards: `ranges` are those of the merged statistics of all shards, and
    `statistics.with_histograms` adds the merged histograms. The model is left as it was.

    Args:
        model: The model that the ranges were measured on.
        batches: Images [N, ...], or pairs (images, targets).
        ranges: `ActivationStatistics.ranges`.
        sections: Number of bins.
        precision: The precision of the first pass.

    Raises:
        CalibrationError: When an argument is not allowed, or a batch cannot be run; the message says which samples it
            holds.
    """
    _check_sections(sections)
    check_precision(precision)
    model = open_attention(model)
    with evaluation_mode(model), HistogramRecorder(model, ranges, num_bins=sections) as recorder:
        _run_all(model, batches, lambda images, _: _forward(model, images), precision)
        return recorder.histograms()


def _check_sections(sections: int) -> None:
    if sections < 2:
        raise CalibrationError(f"sections is {sections}; allowed: an integer of at least 2")


@torch.no_grad()
def _forward(model: nn.Module, images: Tensor) -> None:
    model(images)


def _run_all(model: nn.Module, batches: Iterable[Batch], run: Callable[[Tensor, Any], None], precision: str) -> int:
    """Give every batch to `run`, its images on the model's device, and return the number of samples."""
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    start = 0
    for batch in _checked(batches):
        images, targets = (batch, None) if isinstance(batch, Tensor) else (batch[0], batch[1])
        end = start + len(images)
        try:
            with running_in(precision, device):
                run(laid_out(images.to(device), precision), targets)
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
        yield in_form(batch)
        position += 1
