"""One pass of a model over calibration samples."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from cleanai_ray.errors import CalibrationError, CleanAIError
from cleanai_ray.statistics.channel_statistics import ActivationStatistics
from cleanai_ray.statistics.recorder import ActivationRecorder

Batch = Tensor | tuple[Tensor, Tensor]
Loss = Callable[[Tensor, Tensor], Tensor]


def calibrate(
    model: nn.Module,
    batches: Iterable[Batch],
    *,
    threshold: float = 0.0,
    outputs: bool = False,
    gradients: bool = False,
    loss: Loss | None = None,
) -> ActivationStatistics:
    """Run a model over batches and return the statistics of its activations. The model is left as it was.

    Args:
        model: The model; it is run in eval mode on the device of its parameters.
        batches: Images [N, ...], or pairs (images, targets), of which targets are used for gradients only.
        threshold: Mean activation above which a sample counts as active for the metric `frequency`.
        outputs: Also record the raw outputs of the layers (`observe: output`), and not only what layers receive.
        gradients: Also collect the magnitude of the loss gradient of every parameter, for gradient-based methods. Near
            a minimum the gradient of all samples together is about zero, and tells nothing; Molchanov et al. (2019)
            therefore take the magnitude in each minibatch, and average. It depends on how samples are cut into batches.
        loss: Mean loss of (output, targets); cross-entropy by default.

    Raises:
        CalibrationError: When a batch cannot be run; the message says which samples it holds.
    """
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    loss = loss or functional.cross_entropy
    sums: dict[str, Tensor] = {}
    start = 0
    with _eval_mode(model), ActivationRecorder(model, threshold=threshold, outputs=outputs) as recorder:
        for batch in _checked(batches):
            images, targets = (batch, None) if isinstance(batch, Tensor) else (batch[0], batch[1])
            end = start + len(images)
            try:
                if gradients:
                    _add_gradients(model, images.to(device), targets, loss, sums)
                else:
                    with torch.no_grad():
                        model(images.to(device))
            except Exception as error:
                raise CalibrationError(
                    f"calibration stopped at samples {start} to {end - 1}: {' '.join(str(error).split())}"
                ) from error
            start = end
        statistics = recorder.statistics()
    host = {name: value.cpu() for name, value in sums.items()}
    return replace(statistics, gradients=host, num_gradient_samples=start if gradients else 0)


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


def _add_gradients(
    model: nn.Module, images: Tensor, targets: Tensor | None, loss: Loss, sums: dict[str, Tensor]
) -> None:
    if targets is None:
        raise CalibrationError("gradients need batches of (images, targets), and this batch has no targets")
    parameters = {name: value for name, value in model.named_parameters() if value.requires_grad}
    with torch.enable_grad():
        value = loss(model(images), targets.to(images.device))
        found = torch.autograd.grad(value, list(parameters.values()), allow_unused=True)
    for (name, parameter), gradient in zip(parameters.items(), found, strict=True):
        gradient = torch.zeros_like(parameter) if gradient is None else gradient.detach()
        magnitude = gradient.double().abs() * len(images)
        sums[name] = sums[name] + magnitude if name in sums else magnitude


@contextmanager
def _eval_mode(model: nn.Module) -> Iterator[None]:
    flags = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, flag in flags.items():
            module.training = flag
