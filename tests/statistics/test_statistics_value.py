from __future__ import annotations

import pickle
from dataclasses import fields, replace
from functools import cache, reduce
from operator import add
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_nets import batches, build, tiny_vit

from cleanai_ray import calibrate
from cleanai_ray.errors import ArtifactError, CalibrationError
from cleanai_ray.statistics import (
    ActivationHistograms,
    ActivationStatistics,
    LayerStatistics,
    count_sections,
)

NUM_IMAGES = 12
NAMES = [item.name for item in fields(LayerStatistics) if item.name != "histogram"]
EXACT = {
    "num_samples",
    "num_positions",
    "active_samples",
    "positive_positions",
    "top_samples",
    "minimum",
    "maximum",
    "counts",
    "low",
    "high",
}
OPTIONS: dict[str, Any] = {
    "outputs": True,
    "gradients": True,
    "squared_gradients": True,
    "threshold": 0.1,
    "top_k": 2,
}
SECTIONS = 7


@cache
def of_single_images() -> tuple[ActivationStatistics, ...]:
    """The statistics of each of twelve images by itself."""
    images = batches(sizes=(1,) * NUM_IMAGES)
    model = build("residual")
    return tuple(calibrate(model, [batch], **OPTIONS) for batch in images)


@cache
def of_all_images() -> ActivationStatistics:
    """The statistics of one pass over the same batches."""
    images = batches(sizes=(1,) * NUM_IMAGES)
    return calibrate(build("residual"), images, **OPTIONS, sections=SECTIONS)


@cache
def histograms_of_single_images() -> tuple[ActivationHistograms, ...]:
    """The histograms of each image by itself, over the range of all of them."""
    images, ranges = batches(sizes=(1,) * NUM_IMAGES), of_all_images().ranges
    return tuple(count_sections(build("residual"), [batch], ranges, sections=SECTIONS) for batch in images)


def tensors(statistics: ActivationStatistics) -> dict[str, torch.Tensor]:
    found = {f"gradients/{name}": value for name, value in statistics.gradients.items()}
    found |= {f"squared_gradients/{name}": value for name, value in statistics.squared_gradients.items()}
    for side in ("inputs", "outputs"):
        for layer, value in getattr(statistics, side).items():
            found |= {f"{side}/{layer}/{name}": getattr(value, name) for name in NAMES}
            if value.histogram is not None:
                found |= {
                    f"{side}/{layer}/{name}": getattr(value.histogram, name) for name in ("counts", "low", "high")
                }
    return found


def assert_same(first: ActivationStatistics, second: ActivationStatistics, *, relative: float = 1e-9) -> None:
    """Counts and extrema are equal; sums to a relative 1e-9."""
    left, right = tensors(first), tensors(second)
    assert left.keys() == right.keys()
    assert first.num_samples == second.num_samples
    assert first.num_gradient_samples == second.num_gradient_samples
    for name, value in left.items():
        if name.rpartition("/")[2] in EXACT:
            assert torch.equal(value, right[name]), name
        else:
            torch.testing.assert_close(value, right[name], rtol=relative, atol=1e-12, msg=name)


@st.composite
def shardings(draw: st.DrawFn) -> list[list[int]]:
    """The images in any order, cut into shards anywhere."""
    order = draw(st.permutations(range(NUM_IMAGES)))
    cuts = sorted(draw(st.sets(st.integers(1, NUM_IMAGES - 1), max_size=5)))
    return [order[start:end] for start, end in zip([0, *cuts], [*cuts, NUM_IMAGES], strict=True)]


@given(shardings())
def test_any_sharding_in_any_order_merges_to_the_statistics_of_one_pass(shards: list[list[int]]) -> None:
    merged = reduce(add, [reduce(add, [of_single_images()[i] for i in shard]) for shard in shards])
    counted = reduce(add, [reduce(add, [histograms_of_single_images()[i] for i in shard]) for shard in shards])
    assert_same(merged.with_histograms(counted), of_all_images())


@given(st.permutations(range(NUM_IMAGES)), st.integers(1, NUM_IMAGES - 2), st.integers(1, NUM_IMAGES - 2))
def test_merging_is_associative_and_commutative(order: list[int], first: int, second: int) -> None:
    low, high = sorted((first, second + 1))
    a, b, c = (
        reduce(add, [of_single_images()[i] for i in part])
        for part in (order[:low], order[low:high] or order[:1], order[high:])
    )
    assert_same((a + b) + c, a + (b + c))
    assert_same(a + b, b + a)


def test_shards_of_real_batches_merge_to_the_whole() -> None:
    model, data = build("depthwise"), batches(sizes=(5, 7, 4, 1))
    whole = calibrate(model, data, gradients=True)
    assert_same(calibrate(model, data[2:], gradients=True) + calibrate(model, data[:2], gradients=True), whole)
    assert whole.num_samples == 17
    assert whole.num_gradient_samples == 17


def test_merging_changes_neither_side() -> None:
    a, b = of_single_images()[:2]
    before = {name: value.clone() for name, value in tensors(a).items()}
    total = a + b
    for name, value in tensors(total).items():
        value.add_(1.0)
        assert torch.equal(tensors(a)[name], before[name]), name


@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize("outputs", [False, True])
def test_bytes_and_pickle_restore_every_bit(outputs: bool, gradients: bool) -> None:
    original = calibrate(
        build("concat"),
        batches(),
        threshold=1 / 3,
        top_k=3,
        sections=5 if outputs else None,
        outputs=outputs,
        gradients=gradients,
        squared_gradients=gradients,
    )
    for restored in (ActivationStatistics.from_bytes(original.to_bytes()), pickle.loads(pickle.dumps(original))):
        left, right = tensors(original), tensors(restored)
        assert list(left) == list(right)
        assert all(torch.equal(value, right[name]) and value.dtype == right[name].dtype for name, value in left.items())
        assert list(original.inputs) == list(restored.inputs)
        assert list(original.outputs) == list(restored.outputs)
        assert restored.threshold == 1 / 3
        assert restored.top_k == 3
        assert any(name.endswith("counts") for name in right) == outputs
        assert any(name.startswith("squared_gradients") for name in right) == gradients
        assert restored.num_gradient_samples == (16 if gradients else 0)
    assert original.to_bytes() == original.to_bytes()


def test_a_restored_shard_still_merges() -> None:
    a, b = of_single_images()[:2]
    assert_same(ActivationStatistics.from_bytes(a.to_bytes()) + pickle.loads(pickle.dumps(b)), a + b, relative=0)


def test_attention_round_trips() -> None:
    original = calibrate(tiny_vit(), batches(size=16, channels=3))
    restored = ActivationStatistics.from_bytes(original.to_bytes())
    assert "encoder.layers.encoder_layer_0.self_attention.query" in restored.inputs
    assert_same(restored, original, relative=0)


@pytest.mark.parametrize("damage", [b"", b"nonsense", b'{"a": 1}'], ids=["empty", "text", "json"])
def test_other_bytes_are_refused(damage: bytes) -> None:
    with pytest.raises(ArtifactError, match="activation statistics cannot be read"):
        ActivationStatistics.from_bytes(damage)


def test_cut_and_foreign_files_are_refused() -> None:
    content = of_all_images().to_bytes()
    for cut in (content[: len(content) // 2], content[:-1], content[:20]):
        with pytest.raises(ArtifactError, match="activation statistics cannot be read"):
            ActivationStatistics.from_bytes(cut)
    import safetensors.torch

    with pytest.raises(ArtifactError, match="cleanai-statistics/2"):
        ActivationStatistics.from_bytes(safetensors.torch.save({"weight": torch.ones(2)}))


def test_merges_that_mean_nothing_are_refused() -> None:
    a = of_single_images()[0]
    with pytest.raises(CalibrationError, match=r"threshold 0\.1 and 0\.2 cannot be merged"):
        a + replace(a, threshold=0.2)
    with pytest.raises(CalibrationError, match="top_k 2 and 3 cannot be merged; allowed: the same"):
        a + replace(a, top_k=3)
    with pytest.raises(CalibrationError, match="only one side has inputs of"):
        a + replace(a, inputs={name: value for name, value in a.inputs.items() if name != "conv1"})
    with pytest.raises(CalibrationError, match="only one side has outputs of"):
        a + replace(a, outputs={})
    with pytest.raises(CalibrationError, match="only one side has gradients of"):
        a + replace(a, gradients={}, num_gradient_samples=0)
    with pytest.raises(CalibrationError, match="only one side has squared_gradients of"):
        a + replace(a, squared_gradients={})
    with pytest.raises(CalibrationError, match="only one side has histograms; allowed: both or none"):
        a + of_all_images()
    with pytest.raises(CalibrationError, match="cannot be merged"):
        a + calibrate(build("plain"), batches(), **OPTIONS)
    with pytest.raises(TypeError):
        a + 1  # type: ignore[operator]


def test_a_layer_of_another_width_is_refused() -> None:
    a = of_single_images()[0]
    narrow = replace(a, inputs={**a.inputs, "conv2": a.inputs["conv2"].select(torch.tensor([0, 1]))})
    with pytest.raises(CalibrationError, match="'conv2'"):
        a + narrow


def test_selected_channels_are_those_of_the_narrower_layer() -> None:
    full = of_all_images()
    kept = torch.tensor([0, 2, 5])
    narrow = full.select({"conv2": kept.numpy()}, {"conv1": kept.numpy()})
    for side, layer in (("inputs", "conv2"), ("outputs", "conv1")):
        value, source = getattr(narrow, side)[layer], getattr(full, side)[layer]
        assert value.num_channels == 3
        assert int(value.num_samples) == NUM_IMAGES
        for name in set(NAMES) - {"num_samples", "num_positions"}:
            assert torch.equal(getattr(value, name), getattr(source, name)[kept])
        assert value.histogram is not None
        assert source.histogram is not None
        assert torch.equal(value.histogram.counts, source.histogram.counts[kept])
        assert (value.histogram.low, value.histogram.high) == (source.histogram.low, source.histogram.high)
    assert narrow.inputs["fc"] is full.inputs["fc"]
    assert narrow.top_k == 2
    assert not narrow.gradients
    assert not narrow.squared_gradients


def test_histograms_survive_bytes_and_pickle() -> None:
    original = histograms_of_single_images()[0]
    for restored in (ActivationHistograms.from_bytes(original.to_bytes()), pickle.loads(pickle.dumps(original))):
        assert restored.to_bytes() == original.to_bytes()
        assert list(restored.inputs) == list(original.inputs)
        assert list(restored.outputs) == list(original.outputs)
    with pytest.raises(ArtifactError, match="activation histograms cannot be read"):
        ActivationHistograms.from_bytes(of_all_images().to_bytes())


def test_histograms_that_do_not_belong_together_are_refused() -> None:
    model, images = build("residual"), batches(sizes=(1,) * NUM_IMAGES)
    a = histograms_of_single_images()[0]
    with pytest.raises(CalibrationError, match=r"histograms of shape .* cannot be merged; allowed: the same"):
        a + count_sections(model, images[:1], of_all_images().ranges, sections=SECTIONS + 1)
    own = count_sections(model, images[:1], of_single_images()[0].ranges, sections=SECTIONS)
    with pytest.raises(CalibrationError, match=r"histograms over the ranges .* cannot be merged; allowed: the same"):
        a + own
    with pytest.raises(CalibrationError, match=r"counted over .*; allowed: the range of the statistics"):
        of_all_images().with_histograms(own)
    with pytest.raises(CalibrationError, match="does not count the 768 activations a channel that the statistics saw"):
        of_all_images().with_histograms(a)
    with pytest.raises(CalibrationError, match="only one side has outputs of"):
        a + replace(a, outputs={})
    with pytest.raises(CalibrationError, match="the histograms are not those of the inputs"):
        of_all_images().with_histograms(replace(a, inputs={}))
    with pytest.raises(TypeError):
        a + 1  # type: ignore[operator]


def test_statistics_with_histograms_over_one_range_merge() -> None:
    a, b = (
        replace(single, inputs=with_counts(single, index), outputs={})
        for index, single in enumerate(of_single_images()[:2])
    )
    total = (a + b).inputs["conv2"].histogram
    assert total is not None
    counts = [histograms.inputs["conv2"].counts for histograms in histograms_of_single_images()[:2]]
    assert torch.equal(total.counts, counts[0] + counts[1])


def with_counts(statistics: ActivationStatistics, index: int) -> dict[str, LayerStatistics]:
    counted = histograms_of_single_images()[index].inputs
    return {name: replace(value, histogram=counted[name]) for name, value in statistics.inputs.items()}
