"""Activations are reduced in parts that cover them once, whose size changes nothing."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_nets import batches, build, tiny_vit
from torch import nn

from cleanai_ray import calibrate
from cleanai_ray.statistics import layer_sums
from cleanai_ray.statistics.cache_blocks import cache_sized_blocks


@given(st.tuples(st.integers(1, 5), st.integers(1, 5), st.integers(1, 9)), st.integers(1, 300))
def test_parts_cover_every_activation_once_and_are_no_larger_than_a_row_must_be(
    shape: tuple[int, int, int], limit: int
) -> None:
    seen = torch.zeros(shape)
    for block in cache_sized_blocks(seen, limit):
        assert seen[block].numel() <= max(limit, shape[2])
        seen[block] += 1
    assert (seen == 1).all()


@pytest.mark.parametrize("limit", [1, 40, 1000])
def test_the_size_of_parts_does_not_change_a_bit(limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model, data = build("residual"), batches(sizes=(3, 2))
    whole = calibrate(model, data, outputs=True)
    monkeypatch.setitem(layer_sums._AT_ONCE, "cpu", limit)
    assert calibrate(model, data, outputs=True).to_bytes() == whole.to_bytes()


@pytest.mark.parametrize("limit", [1, 40, 1000])
def test_tokens_whose_channels_lie_next_to_each_other_are_cut_likewise(
    limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, data = tiny_vit(), batches(size=16, channels=3, sizes=(3, 2))
    whole = calibrate(model, data, outputs=True)
    monkeypatch.setitem(layer_sums._AT_ONCE, "cpu", limit)
    cut = calibrate(model, data, outputs=True)
    for layer, value in whole.inputs.items():
        for name, tensor in value.tensors().items():
            torch.testing.assert_close(cut.inputs[layer].tensors()[name], tensor, rtol=1e-5, atol=1e-5)


def test_what_has_no_negative_activation_is_reduced_like_what_has() -> None:
    # The two channels are reduced together; channel 1 is negated, so that absolute values have to be taken.
    images = torch.rand(4, 2, 5, 5, generator=torch.Generator().manual_seed(0))
    images[:, :, 0] = 0
    signed = images * torch.tensor([1.0, -1.0])[:, None, None]
    model = nn.Sequential(nn.Conv2d(2, 1, 1))
    plain, mixed = (calibrate(model, [value]).inputs["0"] for value in (images, signed))
    assert torch.equal(plain.sum_absolutes, plain.sum)
    assert torch.equal(mixed.sum_absolutes, plain.sum_absolutes)
    assert mixed.positive_positions.tolist() == [4 * 20, 0]
    assert plain.positive_positions.tolist() == [4 * 20, 4 * 20]
    assert torch.equal(mixed.sum, plain.sum * torch.tensor([1.0, -1.0]))
