"""Counting activations by bin of the layer's range: exact, in two passes, and in shards."""

from __future__ import annotations

from collections.abc import Iterator
from functools import reduce
from operator import add
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_nets import batches, build, tiny_vit
from torch import Tensor, nn

from cleanai_ray import calibrate
from cleanai_ray.errors import CalibrationError
from cleanai_ray.statistics import LayerHistogram, count_sections, histogram


def histogram_of(images: Tensor, num_bins: int) -> LayerHistogram:
    """The histogram of what the first layer of a model receives: images [samples, channels, 1, positions]."""
    model = nn.Sequential(nn.Conv2d(images.shape[1], 1, 1), nn.Flatten())
    found = calibrate(model, [images], sections=num_bins).inputs["0"].histogram
    assert found is not None
    return found


def test_bins_by_hand() -> None:
    # The range is [-2, 6], and a bin is 2 wide: [-2, 0), [0, 2), [2, 4) and [4, 6].
    images = torch.tensor(
        [[[-2.0, -0.5, 0.0, 1.9], [2.0, 3.9, 4.0, 6.0]], [[0.0, 0.0, 0.0, 5.0], [6.0, 6.0, -2.0, 2.0]]]
    )
    found = histogram_of(images.reshape(2, 2, 1, 4), 4)
    assert found.counts.tolist() == [[2, 5, 0, 1], [1, 0, 3, 4]]
    assert (float(found.low), float(found.high)) == (-2.0, 6.0)
    assert found.counts.dtype == torch.float64
    assert found.num_bins == 4


@pytest.mark.parametrize("value", [0.0, -3.0, 2.5])
def test_a_layer_of_one_value_has_one_bin(value: float) -> None:
    found = histogram_of(torch.full((3, 2, 1, 5), value), 4)
    assert found.counts.tolist() == [[15, 0, 0, 0], [15, 0, 0, 0]]


def slow_counts(stored: Tensor, num_bins: int) -> list[list[int]]:
    """Counts of x[i, c, p], by loops over values and bins."""
    low, high = float(stored.min()), float(stored.max())
    width = (high - low) / num_bins
    counts = []
    for channel in range(stored.shape[1]):
        values = [float(x) for sample in stored for x in sample[channel]]
        inside = [sum(low + j * width <= x < low + (j + 1) * width for x in values) for j in range(num_bins - 1)]
        counts.append([*inside, len(values) - sum(inside)])
    return counts


@pytest.mark.parametrize("chunk", [1, 100, 1 << 20])
def test_counts_are_exact_whatever_is_indexed_at_a_time(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(histogram, "_MAX_INDICES", chunk)
    model, data = build("plain"), batches()
    stored: dict[str, list[Tensor]] = {"inputs": [], "outputs": []}

    def store(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        stored["inputs"].append(inputs[0])
        stored["outputs"].append(output)

    handle = model.conv2.register_forward_hook(store)
    with torch.no_grad():
        for images, _ in data:
            model(images)
    handle.remove()
    found = calibrate(model, data, sections=6, outputs=True)
    for side, values in stored.items():
        counted = getattr(found, side)["conv2"].histogram
        assert counted.counts.tolist() == slow_counts(torch.cat(values).flatten(2), 6)


def test_every_layout_counts_every_position() -> None:
    found = calibrate(tiny_vit(), batches(size=16, channels=3, sizes=(3, 2)), sections=5, outputs=True)
    assert "encoder.layers.encoder_layer_0.self_attention.query" in found.inputs
    for side in (found.inputs, found.outputs):
        for value in side.values():
            assert value.histogram is not None
            assert value.histogram.counts.shape == (value.num_channels, 5)
            assert (value.histogram.counts.sum(dim=1) == value.num_positions).all()


@given(st.permutations(range(6)), st.integers(1, 5), st.integers(2, 9))
def test_shards_count_what_two_passes_count(order: list[int], cut: int, sections: int) -> None:
    model, data = build("residual"), batches(sizes=(1, 2, 1, 3, 1, 2))
    whole = calibrate(model, data, sections=sections, outputs=True)
    shards = [[data[i] for i in part] for part in (order[:cut], order[cut:])]
    merged = reduce(add, [calibrate(model, shard, outputs=True) for shard in shards])
    counted = [count_sections(model, shard, merged.ranges, sections=sections) for shard in shards]
    both = merged.with_histograms(reduce(add, counted))
    for side in ("inputs", "outputs"):
        for layer, value in getattr(whole, side).items():
            assert torch.equal(getattr(both, side)[layer].histogram.counts, value.histogram.counts)


def test_a_generator_is_read_once_and_gives_what_a_list_gives() -> None:
    model, data, reads = build("plain"), batches(), []

    def generated() -> Any:
        reads.append(1)
        yield from data

    assert calibrate(model, generated(), sections=4).to_bytes() == calibrate(model, data, sections=4).to_bytes()
    assert len(reads) == 1


def test_without_sections_there_is_one_pass_and_no_histogram() -> None:
    reads = []

    class Watched(list):
        """Batches that notice being read from the start."""

        def __iter__(self):  # type: ignore[no-untyped-def]
            reads.append(1)
            return super().__iter__()

    assert all(value.histogram is None for value in calibrate(build("plain"), Watched(batches())).inputs.values())
    assert len(reads) == 1
    calibrate(build("plain"), Watched(batches()), sections=4)
    assert len(reads) == 3


def test_batches_that_differ_when_read_again_are_noticed() -> None:
    class Fewer:
        """All batches when they are read first, and all but one afterwards."""

        left = batches()

        def __iter__(self) -> Iterator[Any]:
            yield from list(self.left)
            self.left = self.left[1:]

    with pytest.raises(CalibrationError, match="allowed: the same samples in both passes"):
        calibrate(build("plain"), Fewer(), sections=4)


def test_what_lies_outside_of_a_range_counts_at_its_ends() -> None:
    model = nn.Sequential(nn.Conv2d(1, 1, 1), nn.Flatten())
    images = torch.tensor([-9.0, 0.5, 3.5, 99.0]).reshape(4, 1, 1, 1)
    found = count_sections(model, [images], {"inputs": {"0": (0.0, 4.0)}, "outputs": {}}, sections=4)
    assert found.inputs["0"].counts.tolist() == [[2, 0, 0, 2]]


def test_the_model_is_left_as_it_was() -> None:
    model = build("residual").train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    calibrate(model, batches(), sections=4, outputs=True)
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())


def test_wrong_arguments_are_refused() -> None:
    model, data = build("plain"), batches()
    ranges = calibrate(model, data).ranges
    with pytest.raises(CalibrationError, match="sections is 1; allowed: an integer of at least 2"):
        calibrate(model, data, sections=1)
    with pytest.raises(CalibrationError, match="sections is 0; allowed: an integer of at least 2"):
        count_sections(model, data, ranges, sections=0)
    with pytest.raises(CalibrationError, match="top_k is 0; allowed: an integer of at least 1"):
        calibrate(model, data, top_k=0)
    with pytest.raises(CalibrationError, match="counted nothing: no batch was run"):
        count_sections(model, [], ranges, sections=4)
    with pytest.raises(CalibrationError, match="samples 0 to 4: the inputs of layer 'conv1' have no range"):
        count_sections(model, data, {"inputs": {}, "outputs": {}}, sections=4)
