"""Data sets through the library `datasets`: every kind of folder, the hub's cache, columns, unreadable samples."""

from __future__ import annotations

import io
import pickle
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from image_trees import encoded, opened, write_hub_parquet
from PIL import Image

from cleanai_ray.config.study import parse_study
from cleanai_ray.data import BatchOptions, batches
from cleanai_ray.data.transforms import Preprocessing
from cleanai_ray.errors import DataError, SampleError
from cleanai_ray.stages.workspace import open_workspace

datasets = pytest.importorskip("datasets", reason="the extra huggingface is not installed")

NAMES = [f"digit {number}" for number in range(10)]
COMMIT = "0123456789abcdef0123456789abcdef01234567"
COUNTS = {"train": 12, "test": 6}


@pytest.fixture(autouse=True)
def library_cache(tmp_path_factory, monkeypatch) -> Path:
    """The library's cache, empty; and no hub."""
    folder = tmp_path_factory.mktemp("library")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", folder)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    return folder


@pytest.fixture
def contents(digit_images) -> dict[str, tuple[list[bytes], list[int]]]:
    """PNG files and classes of a training and a test split, all ten classes in the first."""
    images, labels = digit_images
    return {
        split: ([encoded(image, "PNG") for image in images[part]], labels[part].tolist())
        for split, part in (("train", slice(0, 12)), ("test", slice(12, 18)))
    }


def as_rows(images: list[bytes], labels: list[int]) -> datasets.Dataset:
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=NAMES)})
    rows = {"image": [{"bytes": image, "path": None} for image in images], "label": labels}
    return datasets.Dataset.from_dict(rows, features=features)


def write(kind: str, root: Path, contents: dict[str, tuple[list[bytes], list[int]]]) -> Path:
    """Write the splits as a folder of a kind that the library reads."""
    if kind == "save_to_disk":
        datasets.DatasetDict({split: as_rows(*rows) for split, rows in contents.items()}).save_to_disk(root)
        return root
    for split, (images, labels) in contents.items():
        if kind == "parquet":
            write_hub_parquet(root / "data" / f"{split}-00000-of-00001.parquet", images, labels, names=NAMES)
        elif kind == "arrow":
            as_rows(images, labels).save_to_disk(root / "saved")
            (root / "data").mkdir(exist_ok=True)
            shutil.move(next((root / "saved").glob("*.arrow")), root / "data" / f"{split}.arrow")
            shutil.rmtree(root / "saved")
        else:
            for number, (image, label) in enumerate(zip(images, labels, strict=True)):
                folder = root / split / NAMES[label]
                folder.mkdir(parents=True, exist_ok=True)
                (folder / f"{number:02}.png").write_bytes(image)
    return root


def evaluated(content: bytes) -> torch.Tensor:
    steps = Preprocessing(resize=37, crop=(32, 32))  # 32 * 256 / 224 = 36.6
    return steps.normalise(steps.pixels(Image.open(io.BytesIO(content)).convert("RGB")))


@pytest.mark.parametrize("kind", ["parquet", "arrow", "save_to_disk"])
def test_a_folder_of_rows(tmp_path, contents, kind):
    source = opened("huggingface", path=str(write(kind, tmp_path / "set", contents)))
    assert sorted(source.splits) == ["test", "train"]
    assert source.class_names == tuple(NAMES)
    assert source.resolve("val") == "test"
    for split, (images, labels) in contents.items():
        assert source.num_samples(split) == COUNTS[split]
        assert source.classes(split).tolist() == labels
        dataset = source.dataset(split)
        for index in np.random.default_rng(0).permutation(len(images)):
            image, label = dataset[int(index)]
            assert torch.equal(image, evaluated(images[index]))
            assert label == labels[index]
            assert source.describe(split, index) == f"{tmp_path / 'set'} {split} row {index}"


def test_a_folder_of_images_by_class(tmp_path, contents):
    source = opened("huggingface", path=str(write("imagefolder", tmp_path / "set", contents)))
    assert source.class_names == tuple(NAMES)
    found = set()
    for split, (images, labels) in contents.items():
        dataset = source.dataset(split)
        assert len(dataset) == COUNTS[split]
        for index in range(len(dataset)):
            path = Path(source.describe(split, index))
            number = int(path.stem)
            found.add((path.parent.parent.name, number))
            assert path.parent.name == NAMES[labels[number]]
            image, label = dataset[index]
            assert label == labels[number]
            assert torch.equal(image, evaluated(images[number]))
    assert len(found) == 18


def test_one_split_that_was_saved_alone_is_the_training_split(tmp_path, contents):
    as_rows(*contents["train"]).with_format("numpy").save_to_disk(tmp_path / "set")
    source = opened("huggingface", path=str(tmp_path / "set"))
    assert source.splits == ("train",)
    assert source.dataset("train")[3][1] == contents["train"][1][3]


def test_two_data_sets_keep_their_decoded_images_apart(tmp_path, contents):
    first, second = (opened("huggingface", path=str(write("parquet", tmp_path / name, contents))) for name in "ab")
    again = opened("huggingface", path=str(tmp_path / "a"))
    assert first.location == again.location != second.location


def test_the_library_decodes_no_image(tmp_path, contents, monkeypatch):
    root = write("parquet", tmp_path / "set", contents)
    monkeypatch.setattr(datasets.Image, "decode_example", lambda *args, **kwargs: pytest.fail("decoded by the library"))
    dataset = opened("huggingface", path=str(root)).dataset("train")
    assert sum(len(labels) for _, labels in batches(dataset, range(12), 5)) == 12


def test_worker_processes_map_the_files(tmp_path, contents):
    dataset = opened("huggingface", path=str(write("parquet", tmp_path / "set", contents))).dataset("train")
    pickled = pickle.dumps(dataset)
    assert len(pickled) < sum(map(len, contents["train"][0]))  # names of files, and not their content
    assert torch.equal(pickle.loads(pickled)[5][0], dataset[5][0])
    got = list(batches(dataset, range(12), 5, BatchOptions(num_workers=2)))
    assert torch.cat([labels for _, labels in got]).tolist() == contents["train"][1]
    assert torch.equal(torch.cat([images for images, _ in got])[7], dataset[7][0])


def test_unreadable_samples_are_named(tmp_path, contents):
    images, labels = contents["train"]
    rows = [images[0], images[1][:60], b"", None, images[4]]
    write_hub_parquet(tmp_path / "set" / "train.parquet", rows, [*labels[:4], -1], names=NAMES)
    dataset = opened("huggingface", path=str(tmp_path / "set")).dataset("train")
    assert dataset[0][1] == labels[0]
    for index, words in ((1, "cannot be decoded: "), (2, "cannot be decoded: "), (3, "holds no image in column")):
        with pytest.raises(SampleError, match=rf"^sample '{tmp_path}/set train row {index}' {words}"):
            dataset[index]
    with pytest.raises(DataError, match=rf"^sample '{tmp_path}/set train row 4' has label -1; allowed: 0 to 9$"):
        dataset[4]
    with pytest.raises(IndexError):
        dataset[5]


def test_an_unreadable_file_is_named(tmp_path, contents):
    source = opened("huggingface", path=str(write("imagefolder", tmp_path / "set", contents)))
    damaged, gone = (Path(source.describe("test", index)) for index in (1, 4))
    damaged.write_bytes(b"<html>")
    gone.unlink()
    for index, path in ((1, damaged), (4, gone)):
        with pytest.raises(SampleError, match=rf"^sample '{path}' cannot be decoded: "):
            source.dataset("test")[index]


def test_columns_without_types_are_found_by_their_content(tmp_path, contents):
    images, labels = contents["train"]
    write_hub_parquet(tmp_path / "set" / "train.parquet", images, labels, plain=True, columns=("jpg", "cls"))
    source = opened("huggingface", path=str(tmp_path / "set"))
    assert source.class_names == tuple(map(str, range(10)))  # the numbers up to the highest label
    assert torch.equal(source.dataset("train")[2][0], evaluated(images[2]))


@pytest.fixture
def several(tmp_path, contents) -> Path:
    """Two columns of images and two of classes, neither with the usual name."""
    images, labels = contents["train"]
    rows = as_rows(images, labels).rename_columns({"image": "left", "label": "fine"})
    rows = rows.add_column("coarse", [label // 5 for label in labels])
    rows = rows.cast_column("coarse", datasets.ClassLabel(names=["few", "many"]))
    rows = rows.add_column("weight", [0.5] * len(labels)).add_column("note", ["x"] * len(labels))
    doubled = rows.to_dict() | {"right": [{"bytes": image, "path": None} for image in reversed(images)]}
    features = datasets.Features({**rows.features, "right": datasets.Image()})
    datasets.Dataset.from_dict(doubled, features=features).save_to_disk(tmp_path / "set")
    return tmp_path / "set"


def test_columns_can_be_named(several, contents):
    images, labels = contents["train"]
    options = {"image_column": "right", "label_column": "coarse"}
    source = opened("huggingface", path=str(several), num_classes=2, options=options)
    assert source.class_names == ("few", "many")
    image, label = source.dataset("train")[0]
    assert torch.equal(image, evaluated(images[-1]))
    assert label == labels[0] // 5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {},
            r"^data\.options\.image_column is not given, and '.*' has several that it could be; allowed: left, right$",
        ),
        (
            {"image_column": "left"},
            r"^data\.options\.label_column is not given, and '.*' has several .*; allowed: fine, coarse$",
        ),
        ({"image_column": "note"}, r"^data\.options\.image_column is 'note'; allowed with '.*': left, right$"),
        (
            {"image_column": "left", "label_column": "weight"},
            r"^data\.options\.label_column is 'weight'; allowed with '.*': fine, coarse$",
        ),
        ({"image_column": 3}, r"^data\.options\.image_column is 3; allowed: text$"),
        (
            {"column": "left"},
            r"^data\.options holds 'column'; allowed for data set 'huggingface': image_column, label_",
        ),
    ],
)
def test_columns_that_are_not_clear_are_asked_for(several, options, message):
    with pytest.raises(DataError, match=message):
        opened("huggingface", path=str(several), options=options)


def test_a_data_set_without_images_says_so(tmp_path):
    datasets.Dataset.from_dict({"text": ["a"], "label": [0]}).save_to_disk(tmp_path / "set")
    with pytest.raises(DataError, match=r"image_column is not given, .* has none .*; allowed: none in this data set$"):
        opened("huggingface", path=str(tmp_path / "set"))


@pytest.fixture
def cached(tmp_path, contents, library_cache) -> str:
    """A data set of the hub that was fetched once: what the library keeps of it, in its own layout."""
    datasets.load_dataset(str(write("parquet", tmp_path / "digits", contents)))
    fetched = next(library_cache.glob("digits/default/0.0.0/*/dataset_info.json")).parent
    kept = library_cache / "owner___digits" / "default" / "0.0.0" / COMMIT
    kept.parent.mkdir(parents=True)
    fetched.rename(kept)
    return "owner/digits"


@pytest.mark.parametrize("options", [{}, {"revision": COMMIT}, {"config": "default"}])
def test_a_data_set_in_the_cache_is_opened_without_the_hub(cached, contents, options, monkeypatch, capfd):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    ask = "huggingface_hub.HfApi.hf_hub_download"
    monkeypatch.setattr(ask, lambda *args, **kwargs: pytest.fail("the hub was asked"))
    source = opened("huggingface", path=cached, options=options)
    assert source.describe("test", 4) == "owner/digits test row 4"
    assert [source.dataset("test")[index][1] for index in range(6)] == contents["test"][1]
    assert datasets.config.HF_HUB_OFFLINE is False  # as it was
    assert capfd.readouterr().err == ""


def test_another_revision_than_the_cached_one_is_not_taken_for_it(cached):
    with pytest.raises(DataError, match=r"the cache holds another revision than f{40}; expected"):
        opened("huggingface", path=cached, options={"revision": "f" * 40})
    with pytest.raises(DataError, match=r"^data\.options\.revision is 'main'; allowed: the 40 hexadecimal digits"):
        opened("huggingface", path=cached, options={"revision": "main"})


@pytest.mark.parametrize(
    ("path", "message"),
    [
        (None, r"^data\.path is null; expected a name on the hub, or a folder"),
        ("/nowhere", r"^data\.path '/nowhere' does not exist or is not a folder; expected a name on the hub"),
        ("s3://bucket/set", r"^data\.path is 's3://bucket/set'; .* parquet_images and image_folder, with data\.root$"),
        ("owner/nothing", r"^data\.path 'owner/nothing' cannot be opened: Couldn't reach 'owner/nothing' on the Hub"),
    ],
)
def test_a_path_that_leads_nowhere_is_answered_in_a_sentence(path, message):
    with pytest.raises(DataError, match=message) as caught:
        opened("huggingface", path=path)
    assert "\n" not in str(caught.value)


def test_a_folder_without_data_is_answered_in_a_sentence(tmp_path):
    with pytest.raises(DataError, match=rf"^data\.path '{tmp_path}' cannot be opened: ") as caught:
        opened("huggingface", path=str(tmp_path))
    assert "\n" not in str(caught.value)
    with pytest.raises(DataError, match=r"^data\.root is 'x'; allowed for data set 'huggingface': null"):
        opened("huggingface", path=str(tmp_path), root="x")


def test_the_missing_library_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match=r"not installed: pip install 'cleanai-ray\[huggingface\]'$"):
        opened("huggingface", path=str(tmp_path))


def test_a_model_of_other_classes_is_told_where(tmp_path, contents):
    root = write("parquet", tmp_path / "set", contents)
    with pytest.raises(DataError, match=rf"num_classes is 3; allowed with data set 'huggingface' at {root}: 10"):
        opened("huggingface", path=str(root), num_classes=3)


def test_a_study_reads_its_roles(tmp_path, contents):
    study = parse_study(
        {
            "model": {"name": "resnet18", "num_classes": 10, "input_shape": [3, 32, 32]},
            "data": {
                "name": "huggingface",
                "path": str(write("parquet", tmp_path / "set", contents)),
                "calibration": {"samples": 6, "withhold_from_training": True, "shard_size": 4},
                "transform": {"resize": 40, "interpolation": "nearest"},
            },
            "sweep": {"methods": ["magnitude"], "ratios": [0.3]},
        }
    )
    workspace = open_workspace(study.model_dump_json(), "cpu")
    roles = workspace.roles
    drawn = [roles.calibration, roles.validation, roles.training]
    assert sorted(np.concatenate(drawn).tolist()) == list(range(12))  # each training row has one role
    (images, labels) = next(iter(workspace.batches("calibration")))
    assert labels.tolist() == [contents["train"][1][index] for index in roles.calibration]
    steps = Preprocessing(resize=40, crop=(32, 32), interpolation="nearest")
    image = Image.open(io.BytesIO(contents["train"][0][roles.calibration[0]])).convert("RGB")
    assert torch.equal(images[0], steps.normalise(steps.pixels(image)))
    shards = workspace.shards()
    assert [len(shard) for shard in shards] == [4, 2]
    read = roles.calibration[np.concatenate(shards)]
    assert read.tolist() == sorted(roles.calibration.tolist())
