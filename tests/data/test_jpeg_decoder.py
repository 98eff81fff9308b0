"""Decoding of many JPEGs at a time: when a decoder is used, what it is not given, and what it fails at."""

from __future__ import annotations

import io
import logging
import os
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
import torch
from image_trees import opened
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor

from cleanai_ray.config.images import CacheSection
from cleanai_ray.data import (
    BatchOptions,
    KeptImages,
    batches,
    choose_decoder,
    decoder_choice,
    jpeg_decoder,
    kept_images,
)
from cleanai_ray.data.image_folder import FileDataset
from cleanai_ray.data.jpeg_decoder import JpegDecoder, decoded_bytes
from cleanai_ray.data.transforms import Preprocessing
from cleanai_ray.data.unreadable import UnreadableSamples
from cleanai_ray.errors import DataError

SHAPE, COUNT = (3, 32, 32), 12
CPU = torch.device("cpu")
FORK = get_context("fork")


def photo(number: int, size: tuple[int, int] = (60, 45)) -> Image.Image:
    """A smooth image in colours, another one for each number."""
    x, y = np.meshgrid(np.linspace(0, 1, size[0]), np.linspace(0, 1, size[1]))
    waves = [np.sin((number % 5 + 2) * x + channel + number) * np.cos(3 * y + number) for channel in range(3)]
    return Image.fromarray((np.stack(waves, 2) * 120 + 128).astype(np.uint8))


def jpeg(image: Image.Image, **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=90, **options)
    return stream.getvalue()


@pytest.fixture
def root(tmp_path) -> Path:
    """12 photographs in train/, of three classes; with val/, so that none of them is held out."""
    (tmp_path / "val" / "c0").mkdir(parents=True)
    for number in range(COUNT):
        folder = tmp_path / "train" / f"c{number // 4}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number:02}.jpg").write_bytes(jpeg(photo(number)))
    return tmp_path


class Decoder:
    """A decoder of many JPEGs, by Pillow, that a test can spoil.

    Args:
        shift: Grey levels that are added.
        most: Images that it has memory for.
        bad: A JPEG that it fails at.
    """

    def __init__(self, shift: int = 0, most: int = 10**6, bad: bytes = b"") -> None:
        self.shift, self.most, self.bad = shift, most, bad
        self.calls: list[int] = []

    def __call__(self, contents) -> list[Tensor]:
        self.calls.append(len(contents))
        if len(contents) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        if self.bad in contents:
            raise RuntimeError("Error while decoding JPEG images: 2")
        return [self.image(content) for content in contents]

    def image(self, content: bytes) -> Tensor:
        decoded = pil_to_tensor(Image.open(io.BytesIO(content)).convert("RGB"))
        return (decoded.int() + self.shift).clamp(0, 255).byte()


@pytest.fixture
def present(monkeypatch):
    """Makes a decoder that of the device."""
    monkeypatch.setattr(decoder_choice, "_chosen", {})
    return lambda decode: monkeypatch.setattr(decoder_choice, "_decoder_on", lambda device: ("a chip", decode))


def split_of(root: Path) -> FileDataset:
    return opened("image_folder", root=str(root), num_classes=3).dataset("train")


def keeping(dataset: FileDataset, setting: str = "auto") -> KeptImages:
    kept = kept_images(CacheSection(), "train", dataset, SHAPE, choose_decoder(setting, dataset, CPU))
    assert kept is not None
    return kept


def read(dataset: FileDataset, kept: KeptImages | None, num_workers: int = 0, unreadable=None) -> Tensor:
    """All images, in batches of 5."""
    options = BatchOptions(num_workers=num_workers)
    found = batches(dataset, range(COUNT), 5, options, kept=kept, unreadable=unreadable)
    return torch.cat([images for images, _ in found])


def plain(dataset: FileDataset) -> Tensor:
    return torch.stack([dataset[index][0] for index in range(len(dataset))])


def by(decode: Decoder, dataset: FileDataset) -> Tensor:
    """The inputs of what a decoder makes of each image."""
    steps = dataset.preprocessing
    images = [decode.image(Path(dataset.where(index)).read_bytes()) for index in range(len(dataset))]
    return torch.stack([steps.normalise(steps.pixels(image)) for image in images])


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_decoder_that_agrees_decodes_whole_batches_once(root, present, decodes, num_workers):
    decode, dataset = Decoder(), split_of(root)
    present(decode)
    expected = by(decode, dataset)
    assert not torch.equal(expected, plain(dataset))  # since it resizes, too
    kept = keeping(dataset)
    assert decode.calls == [8, 8]  # the first eight are compared as decoded, and as resized
    for _ in range(2):
        assert torch.equal(read(dataset, kept, num_workers), expected)
    assert decode.calls == [8, 8, 5, 5, 2]
    assert list(decodes().values()) == [1] * COUNT
    assert keeping(dataset).decoder is kept.decoder
    assert len(decode.calls) == 5


def test_the_classes_are_those_of_the_images(root, present):
    present(Decoder())
    dataset = split_of(root)
    order = [7, 0, 11, 7, 4]
    ((_, labels),) = batches(dataset, order, 5, kept=keeping(dataset))
    assert labels.tolist() == [index // 4 for index in order]


def test_a_decoder_that_differs_is_not_used(root, present, caplog):
    present(Decoder(shift=3))
    dataset = split_of(root)
    kept = keeping(dataset)
    assert kept.decoder is None
    assert keeping(split_of(root)).decoder is None
    assert torch.equal(read(dataset, kept), plain(dataset))
    told = [text for text in caplog.messages if "JPEGs" in text]
    reason = "those of a chip differ by 3.0 grey levels on average; allowed: 1"
    assert told == [f"JPEGs are decoded by the CPU: {reason}"]


def test_one_level_is_within_what_is_allowed(root, present):
    present(Decoder(shift=1))
    assert keeping(split_of(root)).decoder is not None


def test_a_decoder_that_fails_is_told_of_once(root, present, caplog):
    def fails(contents):
        calls.append(len(contents))
        raise RuntimeError("decode_jpegs_cuda: torchvision not compiled\nwith nvJPEG support")

    calls: list[int] = []
    present(fails)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            dataset = split_of(root)
            assert torch.equal(read(dataset, keeping(dataset)), plain(dataset))
    told = [text for text in caplog.messages if "JPEGs" in text]
    assert told == [
        "JPEGs are decoded by the CPU: a chip failed: decode_jpegs_cuda: torchvision not compiled with nvJPEG support"
    ]
    assert calls == [8]


def test_the_cpu_resizes_where_the_device_does_it_otherwise(root, present, monkeypatch):
    def differently(self, image):
        resized = pixels(self, image)
        return (resized.int() + 2).clamp(0, 255).byte() if isinstance(image, Tensor) else resized

    pixels, decode, dataset = Preprocessing.pixels, Decoder(), split_of(root)
    monkeypatch.setattr(Preprocessing, "pixels", differently)
    present(decode)
    kept = keeping(dataset)
    assert kept.decoder is not None
    assert not kept.decoder.resizes
    assert torch.equal(read(dataset, kept), plain(dataset))
    assert decode.calls[-3:] == [5, 5, 2]


def test_the_setting_keeps_images_with_the_cpu(root, present):
    decode, dataset = Decoder(), split_of(root)
    present(decode)
    assert torch.equal(read(dataset, keeping(dataset, "cpu")), plain(dataset))
    assert decode.calls == []
    assert torch.equal(read(dataset, keeping(dataset)), by(decode, dataset))  # not the file of the CPU's images


def test_no_device_but_cuda_has_a_decoder(root, monkeypatch):
    monkeypatch.setattr(decoder_choice, "_chosen", {})
    assert choose_decoder("auto", split_of(root), CPU) is None
    assert choose_decoder("auto", opened("digits", shape=(1, 8, 8)).dataset("train"), CPU) is None


@pytest.mark.parametrize("num_workers", [0, 2])
def test_the_cpu_decodes_what_the_decoder_is_not_given_or_fails_at(root, present, decodes, num_workers):
    dataset = split_of(root)
    others = {
        9: jpeg(photo(9).convert("L")),
        10: jpeg(photo(10).convert("CMYK")),
        11: jpeg(photo(11), progressive=True),
    }
    for index, content in others.items():
        Path(dataset.where(index)).write_bytes(content)
    decode = Decoder(bad=Path(dataset.where(8)).read_bytes())
    present(decode)
    got, expected = read(dataset, keeping(dataset), num_workers), plain(dataset)
    expected[:8], expected[11] = by(decode, dataset)[:8], by(decode, dataset)[11]
    assert torch.equal(got, expected)
    assert list(decodes().values()) == [1] * COUNT
    assert decode.calls[2:] == [5, 4, 2, 2, 1, 1, 1]  # 5 to 8, with 8 bad: both halves, and those of the second


def test_unreadable_images_are_told_of_as_by_the_cpu(root, present):
    dataset, told = split_of(root), []
    whole = Path(dataset.where(3)).read_bytes()
    for index, content in ((3, whole[:-40]), (6, b""), (7, None)):
        path = Path(dataset.where(index))
        path.unlink() if content is None else path.write_bytes(content)
    present(Decoder())
    for kept in (None, keeping(dataset), keeping(dataset)):
        unreadable = UnreadableSamples(3)
        assert len(read(dataset, kept, unreadable=unreadable)) == COUNT - 3
        told.append(unreadable.found)
        with pytest.raises(DataError, match=r"03\.jpg"):
            read(dataset, kept)
    assert len(told[0]) == 3
    assert told[1:] == told[:1] * 2


def test_memory_that_runs_out_halves_the_batch():
    decode = Decoder(most=2)
    steps = Preprocessing(resize=36, crop=(32, 32))
    decoder = JpegDecoder(name="a chip", decode=decode, device=CPU, preprocessing=steps)
    contents = [jpeg(photo(number)) for number in range(5)]
    assert all(
        torch.equal(image, steps.pixels(decode.image(content)))
        for image, content in zip(decoder.pixels(contents), contents, strict=True)
    )
    assert decode.calls == [5, 2, 3, 1, 2]


def test_decoded_images_take_a_bounded_memory(monkeypatch):
    """Of 60 x 45 pixels in 3 bytes, 8,100 an image: two and no more are within 20,000, and one of 90 x 90 is alone."""
    monkeypatch.setattr(jpeg_decoder, "_DECODED_BYTES", 20_000)
    decode, steps = Decoder(), Preprocessing(resize=36, crop=(32, 32))
    decoder = JpegDecoder(name="a chip", decode=decode, device=CPU, preprocessing=steps)
    contents = [*(jpeg(photo(number)) for number in range(3)), b"", jpeg(photo(3, (90, 90)))]
    found = decoder.pixels(contents)
    assert [image is None for image in found] == [False, False, False, True, False]
    assert decode.calls == [2, 1, 1]


def test_what_a_decoder_is_given():
    image, buffer = photo(0), io.BytesIO()
    image.save(buffer, "PNG")
    whole = jpeg(image)
    assert decoded_bytes(whole) == 3 * 60 * 45
    assert decoded_bytes(whole + b"\0\0") == 3 * 60 * 45
    assert decoded_bytes(jpeg(image, progressive=True, subsampling=0)) == 3 * 60 * 45
    assert decoded_bytes(jpeg(image, exif=Image.Exif())) == 3 * 60 * 45
    others = [jpeg(image.convert("L")), jpeg(image.convert("CMYK")), buffer.getvalue()]
    assert [decoded_bytes(each) for each in (*others, whole[:-1], whole[:200], b"", b"<html>")] == [0] * 7


def test_unconverted_colours_are_left_to_the_cpu():
    content = jpeg(photo(0), keep_rgb=True)
    with Image.open(io.BytesIO(content)) as image:
        if tuple(part[0] for part in image.layer) != tuple(b"RGB"):
            pytest.skip("Pillow before 10.2 writes no such file")
    assert decoded_bytes(content) == 0


def test_samples_that_another_process_decodes_are_left_to_it(root, present):
    present(Decoder())
    dataset = split_of(root)
    images, stamps = keeping(dataset).images, dataset.stamps(np.arange(4))
    ours, theirs = FORK.Event(), FORK.Event()

    def hold() -> None:
        other = keeping(split_of(root)).images
        with other.claimed(np.array([1, 3]), stamps[[1, 3]]) as places:
            ours.set()
            theirs.wait(30)
            os._exit(0 if places.tolist() == [0, 1] else 3)

    process = FORK.Process(target=hold)
    process.start()
    assert ours.wait(60)
    with images.claimed(np.arange(4), stamps) as places:
        assert places.tolist() == [0, 2]
        images.put(2, int(stamps[2]), torch.full(SHAPE, 7, dtype=torch.uint8), 5)
    theirs.set()
    process.join(60)
    assert process.exitcode == 0
    with images.claimed(np.arange(4), stamps) as places:  # the dead one holds nothing
        assert places.tolist() == [0, 1, 3]
    assert images.read(2)[1] == 5
    assert (images.read(2)[0] == 7).all()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_nvjpeg_gives_what_the_cpu_gives(root, decodes, monkeypatch, caplog):
    monkeypatch.setattr(decoder_choice, "_chosen", {})
    dataset, device = split_of(root), torch.device("cuda")
    Path(dataset.where(5)).write_bytes(jpeg(photo(5), progressive=True))
    Path(dataset.where(9)).write_bytes(jpeg(photo(9).convert("L")))
    decoder = choose_decoder("auto", dataset, device)
    assert decoder is not None, caplog.text
    kept = kept_images(CacheSection(), "train", dataset, SHAPE, decoder)
    found = batches(dataset, range(COUNT), 5, BatchOptions(device=device, num_workers=2), kept=kept)
    got = torch.cat([images.cpu() for images, _ in found])
    levels = (got - plain(dataset)).abs().mean(0) * 255 * torch.tensor(dataset.preprocessing.std).view(3, 1, 1)
    assert levels.mean() <= 1
    assert list(decodes().values()) == [1] * COUNT
    again = batches(dataset, range(COUNT), 5, kept=kept)
    assert torch.equal(torch.cat([images for images, _ in again]), got)
