"""Data sets on disk, a few images each."""

from __future__ import annotations

import pickle
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from image_trees import colour_image, encoded, write_hub_parquet
from sklearn.datasets import load_digits

from cleanai_ray.data.reading import DECODE_LOG


@pytest.fixture(autouse=True)
def index_cache(tmp_path_factory, monkeypatch) -> Path:
    """An empty folder for index files, instead of the one in the home folder."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("CLEANAI_CACHE", str(folder))
    return folder


@pytest.fixture(scope="session")
def digit_images() -> tuple[np.ndarray, np.ndarray]:
    """Digits as bytes 0 to 255 [N, 8, 8], and their classes."""
    bunch = load_digits()
    return (bunch.images * 255 / 16).astype(np.uint8), bunch.target


@pytest.fixture
def cifar_root(tmp_path, digit_images) -> Path:
    """Five training batches of 8 images and a test batch of 8, in CIFAR-10's Python format."""
    images, labels = digit_images
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    names = [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]
    for number, name in enumerate(names):
        rows = range(8 * number, 8 * number + 8)
        pixels = np.stack([np.asarray(colour_image(images[row], 32)).transpose(2, 0, 1).reshape(-1) for row in rows])
        content = {b"data": pixels, b"labels": [int(labels[row]) for row in rows], b"batch_label": name.encode()}
        (folder / name).write_bytes(pickle.dumps(content, protocol=2))
    return tmp_path


@pytest.fixture
def imagenet_root(tmp_path, digit_images) -> Path:
    """train/ (5 a class) and val/ (2 a class) with folders of JPEG files named like ImageNet's."""
    images, labels = digit_images
    for split, part in (("train", slice(0, 5)), ("val", slice(5, 7))):
        for label, synset in enumerate(("n01440764", "n01443537", "n02102040")):
            folder = tmp_path / split / synset
            folder.mkdir(parents=True)
            for row in np.flatnonzero(labels == label)[part]:
                (folder / f"{synset}_{row}.JPEG").write_bytes(encoded(images[row]))
    return tmp_path


@pytest.fixture
def food_root(tmp_path, digit_images) -> Path:
    """Food-101's layout: images/<class>/<number>.jpg, meta/train.txt (4 a class) and meta/test.txt (2 a class)."""
    images, labels = digit_images
    lists: dict[str, list[str]] = {"train": [], "test": []}
    for label, name in enumerate(("apple_pie", "baklava")):
        (tmp_path / "images" / name).mkdir(parents=True)
        for place, row in enumerate(np.flatnonzero(labels == label)[:6]):
            (tmp_path / "images" / name / f"{row}.jpg").write_bytes(encoded(images[row]))
            lists["train" if place < 4 else "test"].append(f"{name}/{row}")
    (tmp_path / "meta").mkdir()
    for split, lines in lists.items():
        (tmp_path / "meta" / f"{split}.txt").write_text("\n".join(reversed(lines)) + "\n")
    (tmp_path / "meta" / "classes.txt").write_text("apple_pie\nbaklava\n")
    return tmp_path


@pytest.fixture
def parquet_root(tmp_path, digit_images) -> Path:
    """Two train files of 10 rows and a test file of 6, as a data hub publishes them."""
    images, labels = digit_images
    names = [f"digit {number}" for number in range(10)]
    parts = {"train-00000-of-00002": (0, 10), "train-00001-of-00002": (10, 20), "test-00000-of-00001": (20, 26)}
    for name, (start, stop) in parts.items():
        rows = [encoded(image, "PNG") for image in images[start:stop]]
        write_hub_parquet(tmp_path / "data" / f"{name}.parquet", rows, labels[start:stop].tolist(), names=names)
    return tmp_path


@pytest.fixture
def decodes(tmp_path_factory, monkeypatch) -> Callable[[], Counter]:
    """How often each image was decoded, by any process, by the name of its file."""
    log = tmp_path_factory.mktemp("log") / "decodes"
    log.touch()
    monkeypatch.setenv(DECODE_LOG, str(log))
    return lambda: Counter(Path(line).name for line in log.read_text().splitlines())
