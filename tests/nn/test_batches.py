"""Batches that fit in a processor's caches: the same images in the same order, and the same values."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_nets import build, example
from torch import Tensor, nn

from cleanai_ray.nn.batches import FastLayout, fast_batches, fast_layout, fast_size, in_batches_of
from cleanai_ray.nn.hooks import count_hooks


class Viewing(nn.Module):
    """A network that flattens its maps by `view`, as many do, which only the usual layout allows."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.head = nn.Linear(4 * 64, 3)

    def forward(self, x: Tensor) -> Tensor:
        value = torch.relu(self.conv(x))
        return self.head(value.view(len(value), -1))


def test_the_largest_activation_of_an_image_decides_and_two_is_the_least() -> None:
    # 64 channels of 64 x 64 float32 values are 1 MiB: eight of them are 8 MiB.
    wide = nn.Sequential(nn.Conv2d(3, 64, 1), nn.AvgPool2d(2))
    assert fast_layout(wide, torch.zeros(1, 3, 64, 64)) == FastLayout(size=8, channels_last=True)
    assert fast_layout(wide, torch.zeros(1, 3, 512, 512)) == FastLayout(size=2, channels_last=True)
    assert fast_layout(wide.to("meta"), torch.zeros(1, 3, 64, 64, device="meta")) is None
    assert fast_size(torch.device("cpu"), 1024**2) == 8
    assert fast_size(torch.device("meta"), 1024**2) is None
    assert count_hooks(wide) == 0


def test_channels_are_last_only_where_there_are_channels_and_the_model_allows_it() -> None:
    model = Viewing().train()
    layout = fast_layout(model, torch.zeros(1, 3, 8, 8))
    assert layout == FastLayout(size=8 * 1024**2 // (4 * 64 * 4), channels_last=False)
    assert [part.is_contiguous() for part in fast_batches(torch.randn(5, 3, 8, 8), layout)] == [True]
    assert all(module.training for module in model.modules())
    tokens = fast_layout(nn.Linear(7, 2), torch.zeros(1, 7))
    assert tokens is not None
    assert not tokens.channels_last
    assert fast_layout(model, torch.zeros(1, 2, 8, 8)) is None  # It cannot be run.


@pytest.mark.parametrize("shape", [(11, 2, 8, 8), (11, 7)])
def test_images_stay_in_order_and_equal(shape: tuple[int, ...]) -> None:
    images = torch.randn(shape)
    parts = fast_batches(images, FastLayout(size=4, channels_last=len(shape) == 4))
    assert [len(part) for part in parts] == [4, 4, 3]
    assert torch.equal(torch.cat(parts), images)
    assert fast_batches(images, None)[0] is images


def test_a_model_gives_the_same_outputs() -> None:
    model, images = build("depthwise"), example(9)
    parts = fast_batches(images, fast_layout(model, images[:1]))
    with torch.no_grad():
        outputs = torch.cat([model(part) for part in parts])
        assert torch.allclose(outputs, model(images), rtol=1e-4, atol=1e-6)


@given(st.lists(st.integers(1, 9), min_size=1, max_size=9), st.integers(1, 8))
def test_samples_are_put_together_and_cut_in_order(sizes: list[int], size: int) -> None:
    batches = list(torch.arange(sum(sizes)).split(sizes))
    found = in_batches_of(batches, size)
    assert torch.equal(torch.cat(found), torch.cat(batches))
    assert all(len(batch) <= size for batch in found)
    # Two neighbours could not have been one.
    if not all(one is other for one, other in zip(found, batches, strict=False)):
        assert all(len(one) + len(other) > size for one, other in itertools.pairwise(found))


def test_batches_of_about_the_size_are_not_copied_and_those_of_other_shapes_stay_apart() -> None:
    batches = [torch.zeros(4, 2), torch.zeros(3, 2), torch.zeros(1, 2)]
    assert all(one is other for one, other in zip(in_batches_of(batches, 5), batches, strict=True))
    ragged = [torch.zeros(1, 2), torch.zeros(1, 3)]
    assert [tuple(batch.shape) for batch in in_batches_of(ragged, 5)] == [(1, 2), (1, 3)]
