"""digits, fashion_mnist and cifar10: formats, normalisation, whole batches, augmentation, faults."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from image_trees import colour_image, opened, write_fashion, write_idx
from sklearn.datasets import load_digits

from cleanai_ray.data import digits
from cleanai_ray.data.augment import _draw, sample_seeds
from cleanai_ray.data.fashion_mnist import read_idx
from cleanai_ray.errors import DataError

DEBIAN = Path("/usr/share/datasets/fashion-mnist")


def test_digits_are_split_by_class_and_completely():
    source = opened("digits", shape=(1, 8, 8))
    assert source.splits == ("train", "test")
    labels = {split: source.dataset(split).batch(range(source.num_samples(split)))[1] for split in source.splits}
    assert len(labels["train"]) + len(labels["test"]) == 1797
    for digit, total in enumerate(np.bincount(load_digits().target)):
        assert abs(int((labels["test"] == digit).sum()) - total / 5) <= 0.5
    rows = {source.describe(split, i) for split in source.splits for i in range(source.num_samples(split))}
    assert len({row.partition("(")[2] for row in rows}) == 1797


def test_digits_have_mean_zero_and_variance_one_and_can_be_resized_and_repeated():
    source = opened("digits", shape=(1, 8, 8))
    images = torch.cat([source.dataset(split).batch(range(source.num_samples(split)))[0] for split in source.splits])
    assert images.dtype == torch.float32
    assert images.shape == (1797, 1, 8, 8)
    assert abs(images.mean()) < 0.001
    assert abs(images.std() - 1) < 0.001
    large = opened("digits", shape=(3, 16, 20)).dataset("test").batch([0, 5])[0]
    assert large.shape == (2, 3, 16, 20)
    assert torch.equal(large[:, 0], large[:, 2])
    small = source.dataset("test").batch([0, 5])[0]
    assert torch.allclose(large[:, 0].mean((1, 2)), small.mean((1, 2, 3)), atol=0.1)


@pytest.mark.parametrize("table", [digits._TABLE, "sklearn/elsewhere.csv.gz"])
def test_digits_are_those_of_load_digits_wherever_its_file_lies(table, monkeypatch):
    monkeypatch.setattr(digits, "_TABLE", table)
    found, bunch = digits._table(), load_digits()
    assert np.array_equal(found[:, :-1], bunch.data)
    assert np.array_equal(found[:, -1], bunch.target)


def test_a_sample_is_the_row_that_its_description_names():
    source = opened("digits", shape=(1, 8, 8))
    image, label = source.dataset("test")[7]
    row = int(source.describe("test", 7).partition("(row ")[2].split()[0])
    bunch = load_digits()
    assert label == bunch.target[row]
    assert np.allclose(image[0].numpy() * 0.3760 + 0.3053, bunch.images[row] / 16, atol=1e-6)


@pytest.mark.parametrize("name", ["digits", "cifar10", "fashion_mnist"])
def test_a_batch_is_its_samples(name, cifar_root, digit_images):
    write_fashion(cifar_root / "fashion", np.pad(digit_images[0][:80], ((0, 0), (10, 10), (10, 10))), digit_images[1])
    root = {"digits": None, "cifar10": cifar_root, "fashion_mnist": cifar_root / "fashion"}[name]
    dataset = opened(name, root=root and str(root)).dataset("test")
    images, labels = dataset.batch(np.array([3, 0, 3]))
    for place, index in enumerate([3, 0, 3]):
        image, label = dataset[index]
        assert isinstance(label, int)
        assert label == labels[place]
        assert torch.equal(image, images[place])
    with pytest.raises(IndexError):
        dataset[len(dataset)]


def test_without_crop_padding_an_image_is_at_most_mirrored(cifar_root):
    source = opened("cifar10", shape=(3, 32, 32), root=str(cifar_root), options={"crop_padding": 0})
    plain = source.dataset("train").batch(range(40))[0]
    trained = source.dataset("train", augment=True).batch(range(40), seed=3)[0]
    mirrored = [torch.equal(image, before.flip(-1)) for image, before in zip(trained, plain, strict=True)]
    unchanged = [torch.equal(image, before) for image, before in zip(trained, plain, strict=True)]
    assert all(one != other for one, other in zip(mirrored, unchanged, strict=True))
    assert 0 < sum(mirrored) < 40
    with pytest.raises(DataError, match=r"data.options.crop_padding is -1; allowed: a whole number of pixels"):
        opened("cifar10", root=str(cifar_root), options={"crop_padding": -1})


def test_without_crop_and_flip_an_image_is_trained_on_as_it_is(cifar_root):
    source = opened("cifar10", shape=(3, 32, 32), root=str(cifar_root), options={"crop_padding": 0, "flip": False})
    trained = source.dataset("train", augment=True).batch(range(40), seed=3)[0]
    assert torch.equal(trained, source.dataset("train").batch(range(40))[0])
    with pytest.raises(DataError, match=r"data.options.flip is 'no'; allowed: true or false"):
        opened("cifar10", root=str(cifar_root), options={"flip": "no"})


@pytest.mark.parametrize("folder", [".", "FashionMNIST/raw"])
@pytest.mark.parametrize("ending", [".gz", ""])
def test_fashion_mnist_reads_both_layouts(tmp_path, digit_images, folder, ending):
    images, labels = np.pad(digit_images[0][:80], ((0, 0), (10, 10), (10, 10))), digit_images[1][:80]
    write_fashion(tmp_path / folder, images, labels, ending=ending)
    source = opened("fashion_mnist", shape=(1, 28, 28), root=str(tmp_path))
    assert (source.num_samples("train"), source.num_samples("test")) == (60, 20)
    got, classes = source.dataset("test").batch(range(20))
    assert classes.tolist() == labels[60:80].tolist()
    assert np.allclose(got[:, 0].numpy(), (images[60:80] / 255 - 0.2860) / 0.3530, atol=1e-5)
    assert source.describe("test", 3).endswith(f"t10k-images-idx3-ubyte{ending} row 3")


@pytest.mark.skipif(not DEBIAN.is_dir(), reason="Debian's Fashion-MNIST is not installed")
def test_fashion_mnist_is_found_where_debian_puts_it():
    source = opened("fashion_mnist", shape=(1, 28, 28))
    assert (source.num_samples("train"), source.num_samples("test")) == (60_000, 10_000)
    labels = source.dataset("train").batch(range(60_000))[1]
    assert torch.bincount(labels).tolist() == [6000] * 10


def test_idx_files_keep_their_shape(tmp_path):
    array = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    for name in ("a.gz", "a"):
        write_idx(tmp_path / name, array)
        assert np.array_equal(read_idx(tmp_path / name), array)


@pytest.mark.parametrize("damage", ["truncated", "float", "empty", "not gzip"])
def test_a_damaged_idx_file_is_named(tmp_path, digit_images, damage):
    write_fashion(tmp_path, digit_images[0][:80], digit_images[1][:80], ending=".gz" if damage == "not gzip" else "")
    path = next(tmp_path.glob("t10k-images*"))
    content = path.read_bytes()
    float_type = content[:2] + b"\x0d" + content[3:]
    path.write_bytes({"truncated": content[:-1], "float": float_type, "empty": b"", "not gzip": b"\0" * 50}[damage])
    with pytest.raises(DataError, match=str(path)):
        opened("fashion_mnist", shape=(1, 8, 8), root=str(tmp_path)).num_samples("test")


def test_labels_and_images_of_different_number_are_refused(tmp_path, digit_images):
    write_fashion(tmp_path, digit_images[0][:80], digit_images[1][:80])
    write_idx(tmp_path / "t10k-labels-idx1-ubyte.gz", np.zeros(19, dtype=np.uint8))
    with pytest.raises(DataError, match=r"\[20, 8, 8\].*\[19\].*expected \[N, height, width\] and \[N\]"):
        opened("fashion_mnist", shape=(1, 8, 8), root=str(tmp_path)).num_samples("test")


def test_a_missing_companion_is_named(tmp_path, digit_images):
    write_fashion(tmp_path, digit_images[0][:80], digit_images[1][:80])
    (tmp_path / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(DataError, match=r"lacks t10k-images-idx3-ubyte or t10k-labels-idx1-ubyte"):
        opened("fashion_mnist", shape=(1, 8, 8), root=str(tmp_path))


def test_cifar10_reads_its_batches_in_order(cifar_root, digit_images):
    source = opened("cifar10", root=str(cifar_root))
    assert (source.num_samples("train"), source.num_samples("test")) == (40, 8)
    images, labels = source.dataset("train").batch(range(40))
    assert labels.tolist() == digit_images[1][:40].tolist()
    expected = np.asarray(colour_image(digit_images[0][11], 32)).transpose(2, 0, 1) / 255
    mean, std = np.array([0.4914, 0.4822, 0.4465]), np.array([0.2470, 0.2435, 0.2616])
    assert np.allclose(images[11].numpy(), (expected - mean[:, None, None]) / std[:, None, None], atol=1e-5)
    assert source.describe("train", 11).endswith("data_batch_2 row 3")
    inside = opened("cifar10", root=str(cifar_root / "cifar-10-batches-py"))
    assert inside.num_samples("test") == 8


def test_a_cifar10_batch_that_is_missing_damaged_or_hostile_is_named(cifar_root):
    folder = cifar_root / "cifar-10-batches-py"
    path = folder / "data_batch_4"
    original = path.read_bytes()

    class Hostile:
        def __reduce__(self):
            return os.getcwd, ()

    for content in (original[:-200], pickle.dumps({b"data": Hostile(), b"labels": []}), pickle.dumps({b"data": []})):
        path.write_bytes(content)
        with pytest.raises(DataError, match=f"{path}.*not a batch"):
            opened("cifar10", root=str(cifar_root)).num_samples("train")
    path.unlink()
    with pytest.raises(DataError, match=r"lacks data_batch_4; expected .*data.options.download"):
        opened("cifar10", root=str(cifar_root))


@pytest.mark.parametrize(("name", "reach", "flips"), [("digits", 1, False), ("fashion_mnist", 2, True)])
def test_augmentation_shifts_and_flips_and_follows_the_seed_and_the_sample(tmp_path, name, reach, flips):
    """A single bright pixel shows how far an image moved, and whether it was mirrored."""
    size = 8 if name == "digits" else 28
    source = opened(name, shape=(1, size, size), root=_single_pixel_root(tmp_path) if name == "fashion_mnist" else None)
    dataset = source.dataset("train", augment=True)
    if name == "digits":
        dataset._images = torch.zeros(60, 1, size, size, dtype=torch.uint8)
        dataset._images[:, 0, 4, 2] = 16
    placed = [divmod(int(image.argmax()), size) for seed in range(5) for image in dataset.batch(range(60), seed)[0]]
    assert {row for row, _ in placed} == set(range(4 - reach, 4 + reach + 1))
    plain = set(range(2 - reach, 2 + reach + 1))
    mirrored = {size - 1 - column for column in plain} if flips else set()
    assert {column for _, column in placed} == plain | mirrored
    first = dataset.batch(range(60), 1)[0]
    assert torch.equal(dataset.batch([7, 3, 7], 1)[0], first[[7, 3, 7]])
    assert not torch.equal(dataset.batch(range(60), 2)[0], first)


def test_sample_seeds_differ_and_depend_on_nothing_but_seed_and_index():
    seeds = np.stack([sample_seeds(seed, range(5000)) for seed in (0, 1, 2**64 - 1)])
    assert len(np.unique(seeds)) == seeds.size
    assert np.array_equal(sample_seeds(1, [4321, 17]), seeds[1, [4321, 17]])


def test_draws_are_even_and_do_not_depend_on_each_other():
    seeds = sample_seeds(5, range(90_000))
    table = np.zeros((5, 5, 2))
    np.add.at(table, tuple(_draw(seeds, number, below).numpy() for number, below in enumerate((5, 5, 2))), 1)
    # 50 cells of 1,800 expected: chi-squared of 49 degrees of freedom is below 94 in all but one of 10,000 cases.
    assert ((table - 1800) ** 2 / 1800).sum() < 94


def _single_pixel_root(folder: Path) -> str:
    images = np.zeros((80, 28, 28), dtype=np.uint8)
    images[:, 4, 2] = 255
    write_fashion(folder, images, np.zeros(80, dtype=np.uint8))
    return str(folder)
