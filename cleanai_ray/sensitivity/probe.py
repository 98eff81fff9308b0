"""What removing part of one dependency group does to a model's output."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cleanai_ray.nn.attention import HeadChannels
from cleanai_ray.nn.batches import fast_batches, fast_layout
from cleanai_ray.nn.consumers import is_consumer, shift_output, write_weight
from cleanai_ray.nn.memory import working_bytes
from cleanai_ray.nn.modes import evaluation_mode
from cleanai_ray.nn.replay import Replay
from cleanai_ray.repair.compensation import solve_ridge
from cleanai_ray.repair.images import device_of
from cleanai_ray.repair.moments import ConsumerMoments
from cleanai_ray.repair.outputs import divergence, log_probabilities
from cleanai_ray.repair.trace import trace_consumers
from cleanai_ray.sensitivity.attention import attention_of, fold_queries
from cleanai_ray.sensitivity.elimination import Reading


def _filling(channels: Tensor, values: Tensor) -> Callable[..., Tensor]:
    """Return a hook that sets some channels of an input [N, C, H, W] to constants."""

    def fill(module: nn.Module, args: tuple[Tensor, ...]) -> Tensor:
        constants = values[channels].to(args[0])[None, :, None, None]
        return args[0].index_copy(
            1, channels.to(args[0].device), constants.expand(len(args[0]), -1, *args[0].shape[2:])
        )

    return fill


class Probe:
    """Removes part of one group at a time, compensates, and compares the outputs with the dense model's.

    A probe changes the weights of the group's consumers in the model itself, and puts them back. The pass begins at the
    segment of the first of them; what that segment reads is computed once for neighbouring groups.

    Args:
        model: The dense model.
        moments: Moments of what the consumers read.
        images: Images to compare the outputs on, in batches.
        ridge: Regularisation, as a share of the mean variance of a consumer's inputs.
    """

    def __init__(self, model: nn.Module, moments: ConsumerMoments, images: Sequence[Tensor], ridge: float) -> None:
        self._model = model
        self._moments = moments
        self._ridge = ridge
        first = images[0][:2].to(device_of(model))
        layout = fast_layout(model, first[:1])
        self._images = [part for batch in images for part in fast_batches(batch, layout)]
        self._replay = Replay(model, first)
        self._places = {layer: place for place, segment in enumerate(self._replay.segments) for layer in segment.layers}
        self._consumers = {consumer.name: consumer for consumer in trace_consumers(model, first[:1])}
        self._reference = log_probabilities(model, self._images)
        self._kept: tuple[int, Sequence[Tensor]] = (0, self._images)

    def place(self, layers: Sequence[str]) -> int:
        """Return the place of the segment in which the first of some layers runs."""
        own = [layer if layer in self._places else f"{attention_of(layer)}.q_proj" for layer in layers]
        return min(self._places.get(layer, 0) for layer in own)

    def measure(self, readings: Mapping[str, Reading], units: Sequence[int]) -> float:
        """Return the mean KL(dense || model) in nats without some units of a group.

        Args:
            readings: What each layer reads of the group.
            units: The units that are removed.
        """
        place, values = self._inputs(self.place(list(readings)))
        with ExitStack() as undo:
            for name, reading in readings.items():
                undo.enter_context(self._folded(name, reading, reading.units[list(units)].flatten()))
            outputs = log_probabilities(_Rest(self._replay, place), values)
        return divergence(self._reference, outputs)

    @torch.no_grad()
    def _inputs(self, place: int) -> tuple[int, Sequence[Tensor]]:
        """Return a place not after the one given whose inputs fit in memory, and those inputs."""
        number = sum(len(batch) for batch in self._images)
        room = working_bytes(device_of(self._model)) // 2  # The inputs of one place are made from those of another.
        while place and number * self._replay.bytes_per_sample(place) > room:
            place -= 1
        before, values = self._kept if self._kept[0] <= place else (0, self._images)
        if before < place:
            device = device_of(self._model)
            with evaluation_mode(self._model):
                values = [self._replay.run(value.to(device), start=before, stop=place) for value in values]
            self._kept = (place, values)
        return place, values

    @contextmanager
    def _folded(self, name: str, reading: Reading, removed: Tensor) -> Iterator[None]:
        """Make a consumer read only the channels that stay, compensated in closed form, and undo it on leaving."""
        covariance = reading.covariance
        mean = self._moments[name].mean.to(covariance.device)
        module = self._model.get_submodule(name)
        if isinstance(module, HeadChannels):
            with _restored(self._model.get_submodule(attention_of(name))):
                fold_queries(self._model, name, reading, removed)
                yield
            return
        if not is_consumer(module):
            handle = module.register_forward_pre_hook(_filling(removed, mean))
            try:
                yield
            finally:
                handle.remove()
            return
        kept = torch.as_tensor(np.setdiff1d(np.arange(len(mean)), removed.numpy()))
        mapping = solve_ridge(covariance[removed][:, kept], covariance[kept][:, kept], self._ridge)
        weight, lost = reading.weight.clone(), reading.weight[:, removed]
        weight[:, kept] += torch.einsum("orp,rk->okp", lost, mapping)
        weight[:, removed] = 0
        consumer = self._consumers[name]
        with _restored(module), _restored(self._model.get_submodule(consumer.norm) if consumer.norm else None):
            write_weight(module, weight)
            shift_output(self._model, consumer, lost.sum(dim=2) @ (mean[removed] - mapping @ mean[kept]))
            yield


class _Rest(nn.Module):
    """A model from one of its segments on."""

    def __init__(self, replay: Replay, place: int) -> None:
        super().__init__()
        self.model = replay.model
        self._replay = replay
        self._place = place

    def forward(self, value: Tensor) -> Any:
        return self._replay.run(value, start=self._place)


@contextmanager
def _restored(module: nn.Module | None) -> Iterator[None]:
    """Put the parameters and buffers of a module back on leaving, and take away those it did not have."""
    if module is None:
        yield
        return
    tables: list[dict[str, Any]] = [table for each in module.modules() for table in (each._parameters, each._buffers)]
    before = [(table, dict(table)) for table in tables]
    contents = [(value, value.detach().clone()) for table in tables for value in table.values() if value is not None]
    try:
        yield
    finally:
        with torch.no_grad():
            for value, content in contents:
                value.copy_(content)
        for table, values in before:
            table.clear()
            table.update(values)
