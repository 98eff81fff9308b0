"""First and second moments of what consumers read, taken in forward passes at positions drawn by sample and layer."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from cleanai_ray.errors import CalibrationError
from cleanai_ray.nn.batches import fast_batches, fast_layout
from cleanai_ray.nn.consumers import observing
from cleanai_ray.nn.modes import evaluation_mode
from cleanai_ray.repair.images import Batch, device_of, run, walk
from cleanai_ray.repair.moment_values import ConsumerMoments, CrossMoments, LayerMoments
from cleanai_ray.repair.running_moments import RunningMoments
from cleanai_ray.repair.sampling import POSITIONS_PER_SAMPLE, Places, PositionSampler
from cleanai_ray.statistics.precision import laid_out, running_in

__all__ = ["ConsumerMoments", "CrossMoments", "LayerMoments", "MomentRecorder", "collect_moments"]

Self = TypeVar("Self", bound="MomentRecorder")


class MomentRecorder:
    """Takes moments of what some consumers read in passes that someone else runs; leaves no hook behind.

    Only passes that were announced give moments, each announcement for one pass. Passes may read more samples than
    those that give moments: statistics of all samples, and moments of some, come out of the same pass.

    Args:
        model: The model; the caller runs it, in eval mode.
        layers: Consumers to observe; the result leaves out those that do not run.
        positions_per_sample: Most positions (pixels, tokens) to read per sample.
        features: Features per channel of consumers that read a flattened feature map, by name.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        layers: Sequence[str],
        positions_per_sample: int = POSITIONS_PER_SAMPLE,
        features: Mapping[str, int] | None = None,
    ) -> None:
        self._model = model
        self._layers = layers
        self._sampler = PositionSampler(positions_per_sample, features)
        self._sums = RunningMoments()
        self._samples = range(0)
        self._places: Places | None = None
        self._hooks = contextlib.ExitStack()

    def announce(self, samples: range, gives: np.ndarray | None = None) -> None:
        """Take moments in the next forward pass.

        Args:
            samples: Numbers of the samples that give moments, in their order in the batch. A sample's number decides
                which of its positions are drawn.
            gives: The samples of the batch that give moments, bool [N]; by default all.
        """
        assert gives is None or np.count_nonzero(gives) == len(samples)
        self._samples, self._places = samples, None
        if not samples:
            return
        device = device_of(self._model)
        self._sampler.prepare(self._layers, samples, device)
        if gives is not None and not gives.all():
            # A copy from pageable memory has left it when the call returns, so that it may be overwritten then.
            index = torch.from_numpy(np.flatnonzero(gives)).to(device, non_blocking=True)
            self._places = Places(batch_size=len(gives), index=index)

    def __enter__(self: Self) -> Self:
        self._hooks.enter_context(observing(self._model, self._layers, self._see))
        handle = self._model.register_forward_hook(self._end_of_pass)
        self._hooks.callback(handle.remove)
        return self

    def __exit__(self, *_: object) -> None:
        self._hooks.close()

    @torch.no_grad()
    def _see(self, name: str, module: nn.Module, value: Tensor) -> None:
        if self._samples:
            self._sums.add(name, self._sampler.rows(name, module, value, self._samples, self._places))

    def _end_of_pass(self, *_: Any) -> None:
        self._samples = range(0)

    def moments(self) -> ConsumerMoments | None:
        """Return the moments of the passes so far, None where no sample gave any.

        Raises:
            CalibrationError: When the input of a layer was not finite.
        """
        found = self._sums.finish()
        for name, moments in found.items():
            if not torch.isfinite(moments.scatter).all():
                raise CalibrationError(f"the inputs of layer '{name}' are not finite on the calibration samples")
        return ConsumerMoments(layers=found) if found else None


@torch.no_grad()
def collect_moments(
    model: nn.Module,
    batches: Iterable[Batch],
    *,
    layers: Sequence[str],
    positions_per_sample: int = POSITIONS_PER_SAMPLE,
    first_sample_id: int = 0,
    features: Mapping[str, int] | None = None,
    precision: str = "float32",
) -> ConsumerMoments:
    """Run a model over batches and return moments of what some of its consumers read. The model is left as it was.

    Args:
        model: The model; it is run in eval mode on the device of its parameters.
        batches: Images [N, ...], or pairs that begin with images.
        layers: Consumers to observe; the result leaves out those that do not run.
        positions_per_sample: Most positions (pixels, tokens) to read per sample.
        first_sample_id: Number of the first sample. A sample's number decides which of its positions are drawn.
        features: Features per channel of consumers that read a flattened feature map, by name.
        precision: The precision in which the model is run, as in `statistics.CalibrationOptions`.

    Raises:
        CalibrationError: When a batch cannot be run, or the input of a layer is not finite.
    """
    recorder = MomentRecorder(model, layers=layers, positions_per_sample=positions_per_sample, features=features)
    fast = _in_fast_batches(model, batches)
    with evaluation_mode(model), recorder:
        for samples, images in walk(fast, model, first_sample_id):
            recorder.announce(samples)
            with running_in(precision, images.device):
                run(model, laid_out(images, precision), samples)
    return recorder.moments() or ConsumerMoments(layers={})


def _in_fast_batches(model: nn.Module, batches: Iterable[Batch]) -> Iterator[Tensor]:
    """Return the images of batches in the batches that the model's device runs fastest, which one pass tells now."""
    images = (batch if isinstance(batch, Tensor) else batch[0] for batch in batches)
    first = next(images, None)
    if first is None:
        return iter(())
    layout = fast_layout(model, first[:1].to(device_of(model)))
    return (part for batch in itertools.chain([first], images) for part in fast_batches(batch, layout))
