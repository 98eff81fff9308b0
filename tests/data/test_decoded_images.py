"""Decoded images that a node keeps: each is decoded once, whoever reads, dies, or changes a file meanwhile."""

from __future__ import annotations

import errno
import os
import signal
import time
from collections import Counter
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
import torch
from image_trees import encoded, opened
from PIL import Image

from cleanai_ray.config.images import CacheSection
from cleanai_ray.data import BatchOptions, KeptImages, batches, decoded, kept_images
from cleanai_ray.data.decoded_folder import DecodedFolder
from cleanai_ray.data.image_folder import FileDataset
from cleanai_ray.data.unreadable import UnreadableSamples
from cleanai_ray.errors import DataError

SHAPE = (3, 32, 32)
COUNT = 15
"""Images of the training split."""
FORK = get_context("fork")


def split_of(root: Path) -> FileDataset:
    return opened("image_folder", root=str(root), num_classes=3).dataset("train")


def keeping(dataset: FileDataset, **section) -> KeptImages:
    kept = kept_images(CacheSection(**section), "train", dataset, SHAPE)
    assert kept is not None
    return kept


def read(dataset: FileDataset, kept: KeptImages | None, num_workers: int = 0, **more) -> torch.Tensor:
    """All images, in batches of 4."""
    pairs = list(batches(dataset, range(COUNT), 4, BatchOptions(num_workers=num_workers), kept=kept, **more))
    assert torch.equal(torch.cat([labels for _, labels in pairs]), torch.arange(3).repeat_interleave(5))
    return torch.cat([images for images, _ in pairs])


def plain(dataset: FileDataset) -> torch.Tensor:
    return torch.stack([dataset[index][0] for index in range(len(dataset))])


def joined(process) -> int:
    process.join(60)
    return process.exitcode


@pytest.mark.parametrize("num_workers", [0, 2])
def test_every_image_is_decoded_once_and_is_the_same(imagenet_root, decodes, num_workers):
    dataset = split_of(imagenet_root)
    for _ in range(2):
        assert torch.equal(read(dataset, keeping(dataset), num_workers), plain(dataset))
    assert len(decodes()) == COUNT
    assert set(decodes().values()) == {1}
    some = list(batches(dataset, [9, 2, 9], 2, kept=keeping(split_of(imagenet_root))))
    assert torch.equal(torch.cat([images for images, _ in some]), plain(dataset)[[9, 2, 9]])
    assert set(decodes().values()) == {1}


def test_processes_that_start_at_once_share_the_work(imagenet_root, decodes, monkeypatch):
    def slowly(self, index):
        time.sleep(0.01)  # so that each meets images that another is decoding
        return original(self, index)

    original = FileDataset.pixels
    monkeypatch.setattr(FileDataset, "pixels", slowly)
    barrier = FORK.Barrier(3)

    def work(num_workers: int) -> None:
        dataset = split_of(imagenet_root)
        barrier.wait(30)
        if not torch.equal(read(dataset, keeping(dataset), num_workers), plain(dataset)):
            os._exit(3)

    processes = [FORK.Process(target=work, args=(num_workers,)) for num_workers in (0, 0, 2)]
    for process in processes:
        process.start()
    assert [joined(process) for process in processes] == [0, 0, 0]
    assert len(decodes()) == COUNT
    assert set(decodes().values()) == {1}


@pytest.mark.parametrize("size", [8, 10_000])
@pytest.mark.parametrize("number", [None, 11, 12])
def test_a_process_that_is_killed_leaves_nothing_wrong(imagenet_root, decodes, monkeypatch, number, size):
    """It dies while it decodes the sixth image, or in one of the two writes of its slot, part of which is done."""
    calls = []

    def dies_decoding(self, index):
        calls.append(index)
        return os.kill(os.getpid(), signal.SIGKILL) if len(calls) == 6 else pixels(self, index)

    def dies_writing(file, content, place):
        calls.append(place)
        if len(calls) == number:
            write(file, content[:size], place)
            os.kill(os.getpid(), signal.SIGKILL)
        write(file, content, place)

    pixels, write = FileDataset.pixels, decoded._write
    with monkeypatch.context() as patch:
        if number is None:
            patch.setattr(FileDataset, "pixels", dies_decoding)
        else:
            patch.setattr(decoded, "_write", dies_writing)
        process = FORK.Process(target=lambda: read(split_of(imagenet_root), keeping(split_of(imagenet_root))))
        process.start()
        assert joined(process) == -signal.SIGKILL
    before, dataset = decodes(), split_of(imagenet_root)
    assert sum(before.values()) == 6
    assert torch.equal(read(dataset, keeping(dataset)), plain(dataset))
    assert sorted(decodes().values()) == [1] * (COUNT - 1) + [2]  # that which the dead one was at


def test_the_image_of_a_process_that_dies_is_taken_over_by_one_that_waits(imagenet_root, decodes, monkeypatch):
    def stops(self, index):
        if index == 7:
            os.kill(os.getpid(), signal.SIGSTOP)
        return pixels(self, index)

    def work() -> None:
        dataset = split_of(imagenet_root)
        whole = next(batches(dataset, range(COUNT), COUNT, kept=keeping(dataset)))
        os._exit(0 if torch.equal(whole[0], plain(dataset)) else 3)

    pixels = FileDataset.pixels
    with monkeypatch.context() as patch:
        patch.setattr(FileDataset, "pixels", stops)
        stopped = FORK.Process(target=work)
        stopped.start()
        assert os.WIFSTOPPED(os.waitpid(stopped.pid, os.WUNTRACED)[1])
    try:
        waiting = FORK.Process(target=work)
        waiting.start()
        while len(decodes()) < COUNT and waiting.is_alive():
            time.sleep(0.01)
        waiting.join(0.3)
        assert waiting.is_alive()
        assert set(decodes().values()) == {1}
    finally:
        os.kill(stopped.pid, signal.SIGKILL)
    assert joined(waiting) == 0
    assert Counter(decodes().values()) == {1: COUNT - 1, 2: 1}


def test_a_changed_file_is_decoded_anew(imagenet_root, decodes, digit_images):
    dataset = split_of(imagenet_root)
    before = read(dataset, keeping(dataset))
    changed = Path(dataset.where(4))
    times = os.stat(changed)
    changed.write_bytes(encoded(digit_images[0][99]))
    os.utime(changed, ns=(times.st_atime_ns, times.st_mtime_ns))  # as by a copy that keeps times
    after = read(dataset, keeping(dataset))
    assert torch.equal(after, plain(dataset))
    assert not torch.equal(after[4], before[4])
    assert torch.equal(after[:4], before[:4])
    assert decodes()[changed.name] == 2
    assert sum(decodes().values()) == COUNT + 1


def test_a_file_more_moves_the_others(imagenet_root, digit_images):
    read(split_of(imagenet_root), keeping(split_of(imagenet_root)))
    (imagenet_root / "train" / "n01440764" / "a.JPEG").write_bytes(encoded(digit_images[0][99]))
    (imagenet_root / "train" / "n02102040").joinpath(os.listdir(imagenet_root / "train" / "n02102040")[0]).unlink()
    dataset = split_of(imagenet_root)
    assert len(dataset) == COUNT
    got = [images for images, _ in batches(dataset, range(COUNT), 4, kept=keeping(dataset))]
    assert torch.equal(torch.cat(got), plain(dataset))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_unreadable_images_are_told_of_in_the_same_way_again(imagenet_root, decodes, num_workers):
    dataset = split_of(imagenet_root)
    for index, content in ((1, b""), (4, b"<html>"), (5, None)):
        path = Path(dataset.where(index))
        path.unlink() if content is None else path.write_bytes(content)
    told = []
    for kept in (None, keeping(dataset), keeping(dataset)):
        seen: list[object] = []
        for limit in (0, 2, 3):
            unreadable = UnreadableSamples(limit)
            try:
                pairs = batches(
                    dataset, range(COUNT), 4, BatchOptions(num_workers=num_workers), kept=kept, unreadable=unreadable
                )
                seen.append([len(labels) for _, labels in pairs])
            except DataError as error:
                seen.append(str(error))
            seen.append(unreadable.found)
        told.append(seen)
    assert told[0][4] == [3, 2, 4, 3]
    assert len(told[0][5]) == 3
    assert told[1:] == [told[0]] * 2
    names = [Path(dataset.where(index)).name for index in (1, 4, 5)]
    before = decodes()
    list(batches(dataset, range(COUNT), 4, kept=keeping(dataset), unreadable=UnreadableSamples(3)))
    assert decodes() == before
    assert all(before[name] > 0 for name in names)


def test_a_fault_of_the_system_is_not_kept(imagenet_root, monkeypatch):
    dataset, open_image = split_of(imagenet_root), Image.open

    def refuse(content):
        if str(content) == dataset.where(3):
            raise OSError(errno.EMFILE, "Too many open files")
        return open_image(content)

    monkeypatch.setattr(Image, "open", refuse)
    with pytest.raises(DataError, match="Too many open files"):
        read(dataset, keeping(dataset))
    monkeypatch.setattr(Image, "open", open_image)
    assert torch.equal(read(dataset, keeping(dataset)), plain(dataset))


def test_the_least_recently_used_file_makes_room(imagenet_root, decodes, tmp_path):
    size = COUNT * int(np.prod(SHAPE))
    folder, dataset = str(tmp_path / "kept"), split_of(imagenet_root)
    for name in "abc":  # as of three data sets; each file is closed after use
        kept = kept_images(CacheSection(folder=folder), name, dataset, SHAPE)
        read(dataset, kept)
        os.utime(kept.images.layout.path, (0, "bac".index(name)))
        del kept
    first, second, third = (kept_images(CacheSection(folder=folder), name, dataset, SHAPE) for name in "abc")
    paths = {name: kept.images.layout.path for name, kept in zip("abc", (first, second, third), strict=True)}
    for name in "abc":
        os.utime(paths[name], (0, "bac".index(name)))
    del first, second
    used = sum(os.stat(path).st_blocks * 512 for path in paths.values())
    tight = CacheSection(folder=folder, max_bytes=used + 4096)
    fourth = kept_images(tight, "d", dataset, SHAPE)
    assert sum(decodes().values()) == 3 * COUNT
    read(dataset, fourth)
    assert [name for name, path in paths.items() if not os.path.exists(path)] == ["b"]
    # That which is open stays, though there is no room for all of another one then.
    os.utime(paths["c"], (0, 0))
    assert DecodedFolder(CacheSection(folder=folder, max_bytes=size)).room(fourth.images, COUNT) == 0
    assert [name for name, path in paths.items() if os.path.exists(path)] == ["c"]
    again = kept_images(CacheSection(folder=folder), "b", dataset, SHAPE)
    assert torch.equal(read(dataset, again), plain(dataset))
    assert sum(decodes().values()) == 5 * COUNT


def test_as_many_are_kept_as_there_is_room_for(imagenet_root, decodes, tmp_path):
    dataset, image = split_of(imagenet_root), int(np.prod(SHAPE))
    for _ in range(2):
        kept = keeping(dataset, folder=str(tmp_path / "kept"), max_bytes=6 * image)
        assert torch.equal(read(dataset, kept), plain(dataset))
    repeated = Counter(decodes().values())
    assert repeated[1] in (4, 5, 6)  # the blocks of a filesystem round up
    assert repeated[1] + repeated[2] == COUNT


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_full_disk_costs_only_the_keeping(imagenet_root, monkeypatch, num_workers):
    def full(file, content, place):
        raise OSError(errno.ENOSPC, "No space left on device")

    dataset = split_of(imagenet_root)
    monkeypatch.setattr(decoded, "_write", full)
    assert torch.equal(read(dataset, keeping(dataset), num_workers), plain(dataset))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_folder_that_is_deleted_costs_only_the_keeping(imagenet_root, num_workers):
    dataset = split_of(imagenet_root)
    kept = keeping(dataset)
    for path in Path(kept.images.layout.path).parent.iterdir():
        path.unlink()
    assert torch.equal(read(dataset, kept, num_workers), plain(dataset))
    assert keeping(dataset).images.inode != kept.images.inode


def test_a_folder_that_others_may_write_to_is_not_used(imagenet_root, tmp_path, caplog):
    folder = tmp_path / "shared"
    folder.mkdir()
    folder.chmod(0o777)
    assert kept_images(CacheSection(folder=str(folder)), "train", split_of(imagenet_root), SHAPE) is None
    assert f"decoded images are not kept in '{folder}': the folder belongs to another user, or others" in caplog.text


def test_rows_of_parquet_files_are_kept(parquet_root, decodes):
    source = opened("parquet_images", root=str(parquet_root))
    dataset = source.dataset("train")
    for _ in range(2):
        kept = kept_images(CacheSection(), "train", source.dataset("train"), SHAPE)
        got = torch.cat([images for images, _ in batches(dataset, range(20), 8, kept=kept)])
        assert torch.equal(got, plain(dataset))
    assert sum(decodes().values()) == 20


def test_data_sets_in_memory_are_not_kept():
    assert kept_images(CacheSection(), "train", opened("digits", shape=(1, 8, 8)).dataset("train"), (1, 8, 8)) is None
