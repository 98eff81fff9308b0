"""Worker processes that stay, and the way of batches to the device."""

from __future__ import annotations

import os
import threading

import numpy as np
import pytest
import torch
from image_trees import opened
from torch import Tensor
from torchvision import transforms

from cleanai_ray.data import BatchOptions, batches
from cleanai_ray.data.pixels import Normalization
from cleanai_ray.data.to_device import fetched_ahead

WORKERS = BatchOptions(num_workers=2)


class Processes:
    """64 images of one pixel, whose value is their index, and whose class is the process that read them."""

    dies_at = -1

    def pixels(self, index: int) -> tuple[Tensor, int]:
        if index == self.dies_at:
            os._exit(1)
        return torch.full((1, 1, 1), index, dtype=torch.uint8), os.getpid()

    def normalise(self, pixels: Tensor) -> Tensor:
        return pixels.float()


def processes(pairs) -> set[int]:
    return {int(label) for _, labels in pairs for label in labels}


def values(pairs) -> list[int]:
    return torch.cat([images for images, _ in pairs]).flatten().int().tolist()


def test_workers_stay_for_all_epochs_and_data_sets_that_they_know():
    first, second = Processes(), Processes()
    list(batches(first, range(4), 2, WORKERS))
    known = processes(batches(second, range(4), 2, WORKERS))
    assert len(known) == 2
    assert os.getpid() not in known
    for epoch in range(3):
        for dataset in (first, second):
            assert processes(batches(dataset, range(8), 4, BatchOptions(num_workers=2, shuffle_seed=epoch))) == known


def test_a_batch_is_read_by_all_workers():
    images, labels = next(batches(Processes(), range(8), 8, WORKERS))
    assert images.flatten().int().tolist() == list(range(8))
    first, second = labels[0], labels[-1]
    assert labels.tolist() == [first] * 4 + [second] * 4
    assert first != second


def test_iterations_may_overlap_and_be_given_up():
    dataset = Processes()
    for rounds in range(2):
        one, other = batches(dataset, range(20), 4, WORKERS), batches(dataset, range(20, 40), 4, WORKERS)
        assert values([next(one), next(other), next(one), next(other)]) == [
            *range(4),
            *range(20, 24),
            *range(4, 8),
            *range(24, 28),
        ]
        del one, other
        assert values(batches(dataset, range(40, 60), 4, WORKERS)) == list(range(40, 60)), rounds


def test_others_take_the_place_of_workers_that_die():
    dataset = Processes()
    dataset.dies_at = 5
    with pytest.raises(RuntimeError, match="exited unexpectedly"):
        list(batches(dataset, range(8), 2, WORKERS))
    assert values(batches(dataset, range(5), 2, WORKERS)) == list(range(5))


def test_normalised_pixels_are_those_of_torchvision_to_the_bit():
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    images = torch.arange(256, dtype=torch.uint8).repeat(9).view(3, 3, 16, 16)
    expected = transforms.Normalize(mean, std)(images.float().div(255))
    assert torch.equal(Normalization(mean, std)(images), expected)
    assert torch.equal(Normalization(mean, std)(images.float().div(255)), expected)
    large = images.repeat(1, 1, 40, 20)  # more than are converted at once
    assert torch.equal(Normalization(mean, std)(large), expected.repeat(1, 1, 40, 20))
    grey = Normalization(mean[:1], std[:1], channels=3)(images[:, :1])
    assert torch.equal(grey, Normalization(mean[:1] * 3, std[:1] * 3)(images[:, :1].repeat(1, 3, 1, 1)))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", ["digits", "image_folder"])
@pytest.mark.parametrize("num_workers", [0, 2])
def test_augmented_batches_are_the_same_bits_on_a_cuda_device(imagenet_root, name, num_workers):
    shape, more = ((1, 16, 16), {}) if name == "digits" else ((3, 32, 32), {"root": str(imagenet_root)})
    dataset = opened(name, shape=shape, num_classes=10 if name == "digits" else 3, **more).dataset(
        "train", augment=True
    )
    there, here = (
        list(batches(dataset, range(15), 4, BatchOptions(shuffle_seed=1, num_workers=num_workers, device=device)))
        for device in ("cuda", "cpu")
    )
    for (images, labels), (expected, classes) in zip(there, here, strict=True):
        assert torch.equal(images.cpu(), expected)
        assert torch.equal(labels.cpu(), classes)


def test_values_fetched_ahead_are_in_order_and_errors_come_after_them():
    def failing():
        yield from range(3)
        raise ValueError("no more")

    assert list(fetched_ahead(iter(range(50)))) == list(range(50))
    fetched = fetched_ahead(failing())
    assert [next(fetched) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="no more"):
        next(fetched)


def test_no_more_are_fetched_than_may_wait_and_none_after_the_consumer_stopped():
    drawn = []

    def endless():
        for number in range(10**6):
            drawn.append(number)
            yield number

    fetched = fetched_ahead(endless(), 2)
    assert next(fetched) == 0
    fetched.close()
    # One was taken, two wait, and one was in the thread's hand when it ended.
    assert len(drawn) <= 4
    assert not [thread for thread in threading.enumerate() if thread.name == "cleanai-batches"]


def test_bytes_in_memory_become_the_inputs_that_a_float_image_would(digit_images):
    source = opened("digits", shape=(1, 8, 8))
    dataset, rows = source.dataset("train", augment=True), np.arange(40)
    pixels, _ = dataset.pixel_batch(rows, 3)
    assert pixels.dtype == torch.uint8
    assert torch.equal(dataset.batch(rows, 3)[0], (pixels.float() / 16.0 - 0.3053) / 0.3760)
