"""Samples that cannot be decoded: left out or replaced up to a limit, and remembered."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from image_trees import encoded, opened, write_hub_parquet

from cleanai_ray.config.study import parse_study
from cleanai_ray.data import BatchOptions, batches, numbered_batches
from cleanai_ray.data.unreadable import UnreadableSamples
from cleanai_ray.errors import DataError, SampleError
from cleanai_ray.stages.workspace import open_workspace

BROKEN = (1, 4, 5)
"""Of the 15 training samples; in batches of 3 the second loses two."""


@pytest.fixture(params=["image_folder", "parquet_images", "huggingface"])
def damaged(request, imagenet_root, digit_images, tmp_path):
    """A training split of 15 samples of which BROKEN are damaged, and where those lie."""
    if request.param == "image_folder":
        dataset = opened("image_folder", root=str(imagenet_root), num_classes=3).dataset("train")
        source = opened("image_folder", root=str(imagenet_root), num_classes=3)
        places = [source.describe("train", index) for index in BROKEN]
        for place, content in zip(places, (b"", b"<html>", None), strict=True):
            Path(place).unlink() if content is None else Path(place).write_bytes(content)
        return dataset, places
    rows = [encoded(image) for image in digit_images[0][:15]]
    rows[1], rows[4], rows[5] = rows[1][:60], b"", None
    write_hub_parquet(tmp_path / "hub" / "train.parquet", rows, [0, 1, 2] * 5)
    if request.param == "huggingface":
        pytest.importorskip("datasets", reason="the extra huggingface is not installed")
        cache = {"cache_dir": str(tmp_path / "cache")}
        dataset = opened("huggingface", path=str(tmp_path / "hub"), num_classes=3, options=cache).dataset("train")
        return dataset, [f"{tmp_path}/hub train row {index}" for index in BROKEN]
    dataset = opened("parquet_images", root=str(tmp_path / "hub"), num_classes=3).dataset("train")
    return dataset, [f"{tmp_path}/hub/train.parquet row {index}" for index in BROKEN]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_unreadable_samples_are_left_out_and_remembered(damaged, num_workers):
    dataset, places = damaged
    unreadable = UnreadableSamples(3)
    for _ in range(2):  # a sample that is met again counts once
        got = list(batches(dataset, range(15), 3, BatchOptions(num_workers=num_workers), unreadable=unreadable))
        assert [len(labels) for _, labels in got] == [2, 1, 3, 3, 3]
    readable = [index for index in range(15) if index not in BROKEN]
    images, labels = torch.cat([part for part, _ in got]), torch.cat([part for _, part in got])
    for place, index in enumerate(readable):
        assert torch.equal(images[place], dataset[index][0])
        assert labels[place] == dataset[index][1]
    assert list(unreadable.found) == sorted(places)
    assert unreadable.found[places[0]].startswith("cannot be decoded: ")
    assert list(batches(dataset, [4, 5, 1], 3, BatchOptions(num_workers=num_workers), unreadable=unreadable)) == []


@pytest.mark.parametrize("num_workers", [0, 2])
def test_one_more_than_allowed_is_an_error(damaged, num_workers):
    dataset, places = damaged
    for limit in (1, 2):
        with pytest.raises(DataError) as caught:
            list(
                batches(
                    dataset, range(15), 3, BatchOptions(num_workers=num_workers), unreadable=UnreadableSamples(limit)
                )
            )
        message = str(caught.value)
        assert message.startswith(
            f"data.skip_unreadable is {limit}, but {limit + 1} samples are unreadable, '{places[0]}'"
        )
        assert "\n" not in message
    with pytest.raises(SampleError) as first:
        list(batches(dataset, range(15), 3, BatchOptions(num_workers=num_workers)))
    assert str(first.value).startswith(f"sample '{places[0]}' cannot be decoded: ")


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_readable_sample_of_the_batch_takes_the_place(damaged, num_workers):
    dataset, places = damaged

    def read(share) -> tuple[list, UnreadableSamples]:
        unreadable = UnreadableSamples(3)
        options = BatchOptions(num_workers=num_workers, fill=True)
        return list(batches(dataset, range(15), 3, options, share=share, unreadable=unreadable)), unreadable

    whole, unreadable = read((0, 1))
    expected = [0, 2, 2, 3, 3, 3, *range(6, 15)]  # the next of the batch, around its end
    images = torch.cat([part for part, _ in whole])
    assert [len(labels) for _, labels in whole] == [3] * 5
    assert all(torch.equal(images[place], dataset[index][0]) for place, index in enumerate(expected))
    assert list(unreadable.found) == sorted(places)
    for rank in (0, 1):
        for (part, _), (batch, _) in zip(read((rank, 2))[0], whole, strict=True):
            assert torch.equal(part, batch[rank::2])


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize(("fill", "expected"), [(False, [0, 2, 3, 7, 6]), (True, [0, 2, 2, 3, 3, 3, 7, 6])])
def test_a_batch_says_which_samples_it_holds(damaged, num_workers, fill, expected):
    dataset, _ = damaged
    options = BatchOptions(num_workers=num_workers, fill=fill)
    got = list(numbered_batches(dataset, [0, 1, 2, 3, 4, 5, 7, 6], 3, options, unreadable=UnreadableSamples(3)))
    assert torch.cat([numbers for numbers, _, _ in got]).tolist() == expected
    for numbers, images, labels in got:
        for number, image, label in zip(numbers.tolist(), images, labels.tolist(), strict=True):
            assert torch.equal(image, dataset[number][0])
            assert label == dataset[number][1]


def test_a_fault_of_the_data_set_is_not_skipped(tmp_path, digit_images):
    rows = [encoded(image) for image in digit_images[0][:4]]
    write_hub_parquet(tmp_path / "train.parquet", rows, [0, 1, -1, 1], names=["zero", "one"])
    dataset = opened("parquet_images", root=str(tmp_path), num_classes=2).dataset("train")
    for num_workers in (0, 1):
        with pytest.raises(DataError, match=r"row 2' has label -1; allowed: 0 to 1$"):
            list(batches(dataset, range(4), 2, BatchOptions(num_workers=num_workers), unreadable=UnreadableSamples(9)))


def test_a_study_leaves_out_as_many_as_it_says(imagenet_root):
    for path in list((imagenet_root / "val").rglob("*.JPEG"))[:2]:
        path.write_bytes(b"")
    calibration = {"samples": 6, "withhold_from_training": False}
    options = {"name": "image_folder", "root": str(imagenet_root), "calibration": calibration, "batch_size": 2}
    found = {}
    for allowed in (1, 2):
        study = parse_study(
            {
                "model": {"name": "resnet18", "num_classes": 3, "input_shape": [3, 32, 32]},
                "data": {**options, "skip_unreadable": allowed},
                "sweep": {"methods": ["magnitude"], "ratios": [0.3]},
                "evaluation": {"split": "val"},
            }
        )
        workspace = open_workspace(study.model_dump_json(), "cpu")
        try:
            found[allowed] = sum(len(labels) for _, labels in workspace.batches("evaluation"))
        except DataError as error:
            found[allowed] = str(error).partition(",")[0]
        assert len(workspace.unreadable.found) == 2
    assert found == {1: "data.skip_unreadable is 1", 2: 4}
