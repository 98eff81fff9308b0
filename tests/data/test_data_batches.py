"""Batches: order, shuffling, completeness, and the global random state."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from image_trees import opened

from cleanai_ray.data import BatchOptions, batches, numbered_batches


@pytest.fixture(params=["in memory", "files", "worker processes"])
def setting(request, imagenet_root):
    """A data set of 15 samples or more, and the arguments for reading it."""
    if request.param == "in memory":
        return opened("digits", shape=(1, 8, 8)).dataset("train"), {}
    dataset = opened("image_folder", root=str(imagenet_root), num_classes=3).dataset("train")
    return dataset, {"num_workers": 2 if request.param == "worker processes" else 0}


def test_samples_come_in_the_order_asked_for(setting):
    dataset, arguments = setting
    indices = np.array([7, 2, 9, 2, 0, 14, 3])
    got = list(batches(dataset, indices, 3, BatchOptions(**arguments)))
    assert [len(labels) for _, labels in got] == [3, 3, 1]
    images, labels = torch.cat([part for part, _ in got]), torch.cat([part for _, part in got])
    assert images.dtype == torch.float32
    assert labels.dtype == torch.int64
    for place, index in enumerate(indices):
        image, label = dataset[int(index)]
        assert torch.equal(images[place], image)
        assert labels[place] == label
    numbers = [part for part, _, _ in numbered_batches(dataset, indices, 3, BatchOptions(**arguments))]
    assert torch.cat(numbers).tolist() == list(indices)


def test_a_last_small_batch_can_be_left_out(setting):
    dataset, arguments = setting
    assert [len(y) for _, y in batches(dataset, range(11), 4, BatchOptions(drop_last=True, **arguments))] == [4, 4]
    assert list(batches(dataset, [], 4, BatchOptions(**arguments))) == []


def test_shuffling_is_a_permutation_that_depends_on_its_seed_alone(setting):
    dataset, arguments = setting

    def images(**more) -> torch.Tensor:
        return torch.cat([part for part, _ in batches(dataset, range(15), 4, BatchOptions(**arguments, **more))])

    plain, first, again, other = images(), images(shuffle_seed=1), images(shuffle_seed=1), images(shuffle_seed=2)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not torch.equal(first, plain)

    def sums(batch: torch.Tensor) -> torch.Tensor:
        return batch.double().sum((1, 2, 3)).sort().values

    assert torch.allclose(sums(first), sums(plain))


def test_the_global_random_state_is_left_alone(setting):
    dataset, arguments = setting
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    list(batches(dataset, range(8), 4, BatchOptions(shuffle_seed=5, **arguments)))
    assert torch.equal(torch.rand(2), expected)


def test_a_batch_size_below_one_is_an_error(setting):
    with pytest.raises(ValueError, match=r"batch_size is 0"):
        next(batches(setting[0], range(3), 0))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_batches_arrive_on_a_cuda_device(setting):
    dataset, arguments = setting
    on_device = list(batches(dataset, range(10), 4, BatchOptions(device="cuda", **arguments)))
    on_host = list(batches(dataset, range(10), 4, BatchOptions(**arguments)))
    for (images, labels), (expected, classes) in zip(on_device, on_host, strict=True):
        assert images.device.type == labels.device.type == "cuda"
        assert torch.equal(images.cpu(), expected)
        assert torch.equal(labels.cpu(), classes)
