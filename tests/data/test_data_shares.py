"""Batches shared out among processes: together the ranks read what one process does, augmentation included."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from image_trees import opened

from cleanai_ray.config.study import parse_study
from cleanai_ray.data import BatchOptions, batches
from cleanai_ray.errors import DataError
from cleanai_ray.stages.workspace import open_workspace


def augmented(name: str, root):
    if name == "digits":
        return opened("digits", shape=(1, 8, 8)).dataset("train", augment=True)
    return opened("image_folder", root=str(root), num_classes=3).dataset("train", augment=True)


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("name", ["digits", "image_folder"])
def test_two_ranks_read_what_one_process_reads(name, num_workers, imagenet_root):
    dataset = augmented(name, imagenet_root)
    whole = list(batches(dataset, range(15), 4, BatchOptions(shuffle_seed=3)))
    assert [len(labels) for _, labels in whole] == [4, 4, 4, 3]
    ranks = [
        list(batches(dataset, range(15), 4, BatchOptions(shuffle_seed=3, num_workers=num_workers), share=(r, 2)))
        for r in (0, 1)
    ]
    for number, (images, labels) in enumerate(whole):
        for rank in (0, 1):
            assert torch.equal(ranks[rank][number][0], images[rank::2])
            assert torch.equal(ranks[rank][number][1], labels[rank::2])


@pytest.mark.parametrize("name", ["digits", "image_folder"])
def test_later_batches_are_those_of_the_whole(name, imagenet_root):
    dataset = augmented(name, imagenet_root)
    whole = list(batches(dataset, range(15), 4, BatchOptions(shuffle_seed=3, drop_last=True, fill=True)))
    options = BatchOptions(shuffle_seed=3, drop_last=True, fill=True, first_batch=2)
    (later,) = batches(dataset, range(15), 4, options)
    assert torch.equal(later[0], whole[2][0])
    assert torch.equal(later[1], whole[2][1])


@pytest.mark.parametrize("name", ["digits", "image_folder"])
def test_what_augmentation_does_to_a_sample_follows_from_the_seed_and_its_index(name, imagenet_root):
    dataset = augmented(name, imagenet_root)

    def read(indices, size, seed) -> dict[int, torch.Tensor]:
        images = torch.cat([part for part, _ in batches(dataset, indices, size, BatchOptions(shuffle_seed=seed))])
        order = np.random.default_rng(seed).permutation(indices)
        return dict(zip(order.tolist(), images, strict=True))

    first = read(np.arange(15), 15, 1)
    torch.manual_seed(99)
    again, other = read(np.arange(3, 12), 2, 1), read(np.arange(15), 15, 2)
    assert all(torch.equal(image, first[index]) for index, image in again.items())
    assert not all(torch.equal(image, first[index]) for index, image in other.items())
    plain = augmented(name, imagenet_root)
    items = {index: plain[index][0] for index in range(15)}
    assert not all(torch.equal(items[index], image) for index, image in first.items())


def test_a_rank_without_a_sample_of_a_batch_is_given_none():
    dataset = augmented("digits", None)
    assert [len(y) for _, y in batches(dataset, range(5), 4, share=(1, 2))] == [2]
    with pytest.raises(ValueError, match=r"share is \(2, 2\); allowed: a rank from 0"):
        next(batches(dataset, range(5), 4, share=(2, 2)))


def test_a_workspace_shares_out_training_batches():
    study = parse_study(
        {
            "model": {"name": "resnet20", "num_classes": 10, "input_shape": [1, 8, 8], "train": {"epochs": 1}},
            "data": {"name": "digits", "calibration": {"samples": 100}},
            "sweep": {"methods": ["magnitude"], "ratios": [0.3]},
        }
    )
    workspace = open_workspace(study.model_dump_json(), "cpu")
    epochs = [workspace.training_batches(0, 64, share=(rank, 3)) for rank in range(3)]
    whole, steps = workspace.training_batches(0, 64)
    assert {number for _, number in epochs} == {steps}
    parts = [list(epoch(2)) for epoch, _ in epochs]
    for number, (images, labels) in enumerate(whole(2)):
        for rank in range(3):
            assert torch.equal(parts[rank][number][0], images[rank::3])
            assert torch.equal(parts[rank][number][1], labels[rank::3])
    with pytest.raises(DataError, match="3 workers share a batch of 2 training images; allowed: at most 2"):
        workspace.training_batches(0, 2, share=(0, 3))
