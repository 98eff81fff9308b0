"""Batches that fit in a processor's caches: the same images in the same order, and the same values."""

from __future__ import annotations

import pytest
import torch
from small_nets import build, example
from torch import nn

from cleanai_ray.nn.batches import fast_batch_size, fast_batches
from cleanai_ray.nn.hooks import count_hooks


def test_the_largest_activation_of_an_image_decides_and_two_is_the_least() -> None:
    # 64 channels of 64 x 64 float32 values are 1 MiB: eight of them are 8 MiB.
    wide = nn.Sequential(nn.Conv2d(3, 64, 1), nn.AvgPool2d(2))
    assert fast_batch_size(wide, torch.zeros(1, 3, 64, 64)) == 8
    assert fast_batch_size(wide, torch.zeros(1, 3, 512, 512)) == 2
    assert fast_batch_size(wide.to("meta"), torch.zeros(1, 3, 64, 64, device="meta")) is None
    assert count_hooks(wide) == 0


@pytest.mark.parametrize("shape", [(11, 2, 8, 8), (11, 7)])
def test_images_stay_in_order_and_equal(shape: tuple[int, ...]) -> None:
    images = torch.randn(shape)
    parts = fast_batches(images, 4)
    assert [len(part) for part in parts] == [4, 4, 3]
    assert torch.equal(torch.cat(parts), images)
    assert fast_batches(images, None)[0] is images


def test_a_model_gives_the_same_outputs() -> None:
    model, images = build("depthwise"), example(9)
    parts = fast_batches(images, fast_batch_size(model, images[:1]))
    with torch.no_grad():
        outputs = torch.cat([model(part) for part in parts])
        assert torch.allclose(outputs, model(images), rtol=1e-4, atol=1e-6)
