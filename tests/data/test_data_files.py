"""image_folder and parquet_images against small trees of the real layouts."""

from __future__ import annotations

import io
import pickle

import numpy as np
import pytest
import torch
from image_trees import encoded, opened, write_hub_parquet
from PIL import Image
from torchvision import transforms

from cleanai_ray.data import BatchOptions, batches
from cleanai_ray.data.parquet_images import Columns, ParquetDataset, RowGroup
from cleanai_ray.data.transforms import Preprocessing
from cleanai_ray.errors import DataError

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def evaluated(content: bytes, size: int, resize: int) -> torch.Tensor:
    image = Image.open(io.BytesIO(content)).convert("RGB")
    steps = [transforms.Resize(resize), transforms.CenterCrop(size), transforms.ToTensor()]
    return transforms.Compose([*steps, transforms.Normalize(MEAN, STD)])(image)


def test_imagenet_folders(imagenet_root):
    source = opened("image_folder", root=str(imagenet_root), num_classes=3, shape=(3, 28, 28))
    assert source.splits == ("train", "val")
    assert source.class_names == ("n01440764", "n01443537", "n02102040")
    assert (source.num_samples("train"), source.num_samples("val")) == (15, 6)
    assert source.resolve("test") == "val"
    dataset = source.dataset("test")
    assert [dataset[index][1] for index in range(6)] == [0, 0, 1, 1, 2, 2]
    path = source.describe("val", 4)
    assert "/val/n02102040/" in path
    with open(path, "rb") as stream:
        assert torch.equal(dataset[4][0], evaluated(stream.read(), 28, 32))  # 28 * 256 / 224 = 32


def test_items_draw_the_training_transform_from_torchs_generator(imagenet_root):
    dataset = opened("image_folder", root=str(imagenet_root), num_classes=3).dataset("train", augment=True)
    torch.manual_seed(2)
    first, second = dataset[0][0], dataset[0][0]
    assert first.shape == (3, 32, 32)
    assert not torch.equal(first, second)
    torch.manual_seed(2)
    assert torch.equal(dataset[0][0], first)


def test_food101_as_published(food_root):
    source = opened("image_folder", root=str(food_root), num_classes=2)
    assert source.splits == ("train", "test")
    assert source.class_names == ("apple_pie", "baklava")
    assert (source.num_samples("train"), source.num_samples("test")) == (8, 4)
    listed = (food_root / "meta" / "test.txt").read_text().split()
    found = [source.describe("test", index) for index in range(4)]
    assert {path.removeprefix(f"{food_root}/images/").removesuffix(".jpg") for path in found} == set(listed)
    dataset = source.dataset("test")
    assert [dataset[index][1] for index in range(4)] == ["baklava" in path for path in found]


def test_a_listed_class_without_folder_is_named(food_root):
    with (food_root / "meta" / "test.txt").open("a") as stream:
        stream.write("churros/17\n")
    with pytest.raises(DataError, match=r"test\.txt' lists 'churros/17'"):
        opened("image_folder", root=str(food_root), num_classes=2).num_samples("test")


def test_a_class_that_training_lacks_is_named(imagenet_root):
    (imagenet_root / "val" / "n99999999").mkdir()
    with pytest.raises(DataError, match=r"holds class 'n99999999'"):
        opened("image_folder", root=str(imagenet_root), num_classes=3).num_samples("val")


def test_grey_and_palette_images_become_rgb(imagenet_root):
    source = opened("image_folder", root=str(imagenet_root), num_classes=3)
    Image.open(source.describe("train", 0)).convert("P").save(imagenet_root / "train" / "n01440764" / "a.png")
    again = opened("image_folder", root=str(imagenet_root), num_classes=3)
    assert again.num_samples("train") == 16
    assert all(again.dataset("train")[index][0].shape == (3, 32, 32) for index in range(16))


@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.parametrize("damage", ["truncated", "text", "gone"])
def test_an_unreadable_file_is_named(imagenet_root, damage, num_workers):
    source = opened("image_folder", root=str(imagenet_root), num_classes=3)
    source.num_samples("val")
    path = next((imagenet_root / "val" / "n01443537").iterdir())
    content = path.read_bytes()
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(content[: len(content) // 2] if damage == "truncated" else b"<html>not found</html>")
    with pytest.raises(DataError) as caught:
        list(batches(source.dataset("val"), range(6), 2, BatchOptions(num_workers=num_workers)))
    assert str(caught.value).startswith(f"sample '{path}' cannot be decoded: ")
    assert "\n" not in str(caught.value)


def test_hub_parquet(parquet_root, digit_images):
    source = opened("parquet_images", root=str(parquet_root), shape=(3, 28, 28))
    assert source.splits == ("train", "test")
    assert source.class_names[3] == "digit 3"
    assert (source.num_samples("train"), source.num_samples("test")) == (20, 6)
    dataset = source.dataset("train")
    order = np.random.default_rng(0).permutation(20)
    for index in order:
        image, label = dataset[int(index)]
        assert label == digit_images[1][index]
        assert torch.equal(image, evaluated(encoded(digit_images[0][index], "PNG"), 28, 32))
    assert source.describe("train", 17).endswith("train-00001-of-00002.parquet row 7")
    assert source.resolve("validation") == "test"


def test_parquet_survives_pickling_and_worker_processes(parquet_root, digit_images):
    dataset = opened("parquet_images", root=f"file://{parquet_root}").dataset("train")
    dataset[0]
    copy = pickle.loads(pickle.dumps(dataset))
    assert torch.equal(copy[5][0], dataset[5][0])
    labels = [
        label for _, part in batches(dataset, range(20), 6, BatchOptions(num_workers=2)) for label in part.tolist()
    ]
    assert labels == digit_images[1][:20].tolist()


@pytest.mark.parametrize(
    "layout", ["{split}/0000.parquet", "{split}.parquet", "plain_text/{split}-00000-of-00001.parquet"]
)
def test_parquet_splits_by_folder_or_prefix(tmp_path, digit_images, layout):
    for split, count in (("train", 5), ("validation", 3)):
        rows = [encoded(image) for image in digit_images[0][:count]]
        write_hub_parquet(tmp_path / layout.format(split=split), rows, list(range(count)), plain=True)
    source = opened("parquet_images", root=str(tmp_path), num_classes=5)
    assert source.splits == ("train", "validation")
    assert source.num_samples("val") == 3
    assert source.class_names == ("0", "1", "2", "3", "4")


def test_parquet_columns_can_be_named(tmp_path, digit_images):
    rows = [encoded(image) for image in digit_images[0][:3]]
    write_hub_parquet(tmp_path / "train.parquet", rows, [0, 1, 2], columns=("img", "fine"))
    options = {"image_column": "img", "label_column": "fine"}
    source = opened("parquet_images", root=str(tmp_path), num_classes=3, options=options)
    assert source.dataset("train")[2][1] == 2
    with pytest.raises(DataError, match=r"image_column is 'image'.*allowed: img, fine"):
        opened("parquet_images", root=str(tmp_path), num_classes=3)


def test_unreadable_parquet_samples_are_named(tmp_path, digit_images):
    good = encoded(digit_images[0][0])
    names = ["zero", "one"]
    write_hub_parquet(tmp_path / "train.parquet", [good, good[:50], None, good], [0, 1, 0, -1], names=names)
    dataset = opened("parquet_images", root=str(tmp_path), num_classes=2).dataset("train")
    dataset[0]
    for index, words in ((1, "1' cannot be decoded"), (2, "2' holds no image bytes"), (3, "3' has label -1")):
        with pytest.raises(DataError, match=rf"sample .*train\.parquet row {words}"):
            dataset[index]


def test_a_damaged_parquet_file_is_named(tmp_path):
    (tmp_path / "train-0.parquet").write_bytes(b"PAR1 and nothing else")
    with pytest.raises(DataError, match=r"train-0\.parquet' is not a readable Parquet file"):
        opened("parquet_images", root=str(tmp_path))


def test_shuffling_keeps_row_groups_together(tmp_path, digit_images):
    image = encoded(digit_images[0][0])
    write_hub_parquet(tmp_path / "train.parquet", [image] * 120, list(range(120)), row_group_size=4)
    dataset = opened("parquet_images", root=str(tmp_path), num_classes=120).dataset("train")
    order = dataset.shuffled(np.arange(120), np.random.default_rng(3))
    assert sorted(order.tolist()) == list(range(120))
    first_cacheful = order[: 8 * 4]  # eight row groups of four rows stay in memory at a time
    assert len(set((first_cacheful // 4).tolist())) == 8
    assert first_cacheful.tolist() != sorted(first_cacheful.tolist())
    assert not np.array_equal(order, dataset.shuffled(np.arange(120), np.random.default_rng(4)))


def test_rows_are_counted_from_the_beginning_of_their_file():
    """Against counting one by one; the cost of a row does not grow with the row groups before it."""
    sizes = {"a": [3, 1, 4], "b": [], "c": [1], "d": [5, 9]}
    groups = [RowGroup(file, number, size) for file, rows in sizes.items() for number, size in enumerate(rows)]
    read: list[RowGroup] = []

    class Watched(list):
        def __getitem__(self, place):
            read.append(place)
            return super().__getitem__(place)

    steps = Preprocessing(resize=8, crop=(8, 8))
    columns = Columns("image", "label")
    dataset = ParquetDataset(None, Watched(groups), columns, num_classes=2, preprocessing=steps, augment=False)
    expected = [f"{file} row {row}" for file, rows in sizes.items() for row in range(sum(rows))]
    assert len(dataset) == 23
    read.clear()
    assert [dataset.where(index) for index in range(23)] == expected
    assert len(read) <= 3 * 23
    assert all(isinstance(place, int) for place in read)
