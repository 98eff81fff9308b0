"""Run directories, weights and data sets on an S3-compatible server."""

from __future__ import annotations

import itertools
import os
import pickle
import subprocess
import sys
import threading
import uuid
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from object_store import ObjectStore
from PIL import Image
from safetensors.torch import save

from cleanai_ray.config.sections import DataSection, ModelSection
from cleanai_ray.config.study import parse_study
from cleanai_ray.data import BatchOptions, UnreadableSamples, batches, open_image_source
from cleanai_ray.errors import ArtifactError, DataError, ModelError
from cleanai_ray.models import build_model
from cleanai_ray.stages.fingerprints import dense_key
from cleanai_ray.storage.run_directory import RunDirectory, resolve_filesystem

pytestmark = pytest.mark.slow


@pytest.fixture
def run(store: ObjectStore, request: pytest.FixtureRequest) -> RunDirectory:
    return RunDirectory(store.url(f"runs/{request.node.originalname}-{uuid.uuid4().hex}"))


def test_files_and_folders_move_within_a_run_directory(run: RunDirectory) -> None:
    run.write_text("trials/a.json", "{}")
    run.mark("trials/a.json", "key")
    run.write_text("models/a/deep/er.txt", "x")
    run.copy("models/a", "history/0/models/a")
    run.move("trials/a.json", "history/1/trials/a.json")
    run.move("models/a", "history/1/models/a")
    assert run.is_complete("history/1/trials/a.json", "key")
    assert [run.read_text(f"history/{number}/models/a/deep/er.txt") for number in (0, 1)] == ["x", "x"]
    assert (run.exists("trials/a.json"), run.exists("models/a")) == (False, False)


def test_a_run_directory_writes_reads_lists_and_deletes(run: RunDirectory) -> None:
    table = pa.table({"a": [1, None, 3], "b": ["x", "y", None]})
    assert not run.is_local
    assert not run.exists()
    assert run.list("") == []
    run.delete("models")
    large = np.random.default_rng(0).bytes(11_000_000)  # more than one part of an upload
    run.write_bytes("models/t1/weights.safetensors", large)
    run.write_bytes("empty", b"")
    run.write_text("models/t2/text.txt", "é\n")
    run.write_json("value.json", {"b": [1, 2.5, None]})
    run.write_table("table.parquet", table)
    assert run.read_bytes("models/t1/weights.safetensors") == large
    assert run.read_bytes("empty") == b""
    assert run.read_text("models/t2/text.txt") == "é\n"
    assert run.read_json("value.json") == {"b": [1, 2.5, None]}
    assert run.read_table("table.parquet").equals(table)
    assert run.list("") == ["empty", "models", "table.parquet", "value.json"]
    assert run.list("models") == ["t1", "t2"]
    run.delete("models/t1")
    assert not run.exists("models/t1")
    assert run.list("models") == ["t2"]
    run.delete("models")
    run.delete("value.json")
    assert run.list("") == ["empty", "table.parquet"]
    assert not run.exists("models")


def test_a_marker_speaks_of_what_is_there(run: RunDirectory) -> None:
    run.write_text("shards/1", "from a")
    assert not run.is_complete("shards/1", "a")
    run.mark("shards/1", "a")
    assert run.is_complete("shards/1", "a")
    assert not run.is_complete("shards/1", "b")
    run.write_text("shards/1", "from b")
    assert not run.is_complete("shards/1", "a")
    with pytest.raises(TypeError):
        run.write_bytes("shards/1", object())  # type: ignore[arg-type]
    assert run.read_text("shards/1") == "from b"
    assert run.list("shards") == ["1"]


def test_a_run_directory_travels_to_another_process(run: RunDirectory) -> None:
    run.write_text("x", "from here")
    program = (
        "import pickle, sys\n"
        "run = pickle.load(sys.stdin.buffer)\n"
        "run.write_text('y', run.read_text('x') + ' and there')\n"
        "path, filesystem = run.storage('y')\n"
        "print(path, filesystem.type_name)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], input=pickle.dumps(run), check=True, stdout=subprocess.PIPE)
    assert done.stdout.decode().split() == [f"{resolve_filesystem(run.location)[1]}/y", "s3"]
    assert run.read_text("y") == "from here and there"


def test_what_goes_wrong_is_one_sentence(run: RunDirectory, store: ObjectStore) -> None:
    with pytest.raises(ArtifactError, match=r"^'absent' is not in run directory 's3://bucket/runs/"):
        run.read_bytes("absent")
    elsewhere = RunDirectory(store.url("run").replace("s3://bucket", "s3://nowhere"))
    with pytest.raises(ArtifactError, match=r"'x' in run directory 's3://nowhere/run.*' cannot be written: .*BUCKET"):
        elsewhere.write_text("x", "text")
    with pytest.raises(
        DataError, match=r"data.root 's3://bucket/nothing.*' does not exist or is not a folder; expected"
    ):
        open_image_source(DataSection(name="image_folder", root=store.url("nothing")), model_section())


def model_section(**fields: object) -> ModelSection:
    return ModelSection.model_validate({"name": "resnet18", "num_classes": 2, "input_shape": (3, 32, 32), **fields})


def test_a_file_that_is_replaced_while_it_is_read_is_one_version_or_the_other(run: RunDirectory) -> None:
    versions = [{"text": "x" * length} for length in (10, 11, 200)]
    run.write_json("status.json", versions[0])
    over = threading.Event()

    def replace() -> None:
        for version in itertools.cycle(versions):
            if over.is_set():
                return
            run.write_json("status.json", version)

    writer = threading.Thread(target=replace)
    writer.start()
    try:
        found = [run.read_json("status.json") for _ in range(200)]
    finally:
        over.set()
        writer.join()
    assert all(value in versions for value in found)
    assert len({len(value["text"]) for value in found}) > 1, "it was replaced"


def test_weights_are_read_and_counted_by_their_content(run: RunDirectory, store: ObjectStore) -> None:
    spec = {"name": "resnet20", "num_classes": 10, "input_shape": [1, 8, 8]}
    state = build_model(ModelSection.model_validate(spec), seed=3).state_dict()
    folder = resolve_filesystem(run.location)[1].partition("/")[2]
    location = store.url(f"{folder}/w.safetensors")

    def key(weights: str) -> str:
        sweep = {"methods": ["magnitude"], "ratios": [0.3]}
        return dense_key(
            parse_study({"model": {**spec, "weights": weights}, "data": {"name": "digits"}, "sweep": sweep})
        )

    run.write_bytes("w.safetensors", save(state))
    first = key(location)
    loaded = build_model(ModelSection.model_validate({**spec, "weights": location})).state_dict()
    assert all(torch.equal(loaded[name], state[name]) for name in state)
    run.write_bytes("w.safetensors", save({**state, "fc.bias": state["fc.bias"] + 1}))
    second = key(location)
    run.write_bytes("w.safetensors", save(state))
    assert key(location) == first != second
    with pytest.raises(ModelError, match=r"model.weights 's3://.*none\.pt.*' does not exist"):
        build_model(ModelSection.model_validate({**spec, "weights": store.url(f"{folder}/none.pt")}))


@pytest.fixture
def image_tree(tmp_path: Path) -> Path:
    """train/ and val/ with two classes of three images, some of them in a folder below their class's."""
    generator = np.random.default_rng(4)
    for split in ("train", "val"):
        for label in ("cat", "dog"):
            for name in ("b.png", "a/c.png", "a.x.png"):
                path = tmp_path / split / label / name
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(generator.integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(path)
    (tmp_path / "train" / "cat" / "notes.txt").write_text("no image")
    return tmp_path


def copied(folder: Path, run: RunDirectory) -> str:
    """Copy a folder to an object store, and return its location there."""
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        run.write_bytes(str(path.relative_to(folder)), path.read_bytes())
    return run.location


@pytest.mark.parametrize("num_workers", [0, 2])
def test_image_folder_reads_an_object_store_as_it_reads_a_folder(
    image_tree: Path, run: RunDirectory, num_workers: int
) -> None:
    options = {"index_cache": False}
    here = open_image_source(DataSection(name="image_folder", root=str(image_tree), options=options), model_section())
    there = open_image_source(DataSection(name="image_folder", root=copied(image_tree, run)), model_section())
    assert (there.splits, there.class_names) == (("train", "val"), ("cat", "dog"))
    assert there.num_samples("train") == here.num_samples("train") == 6
    root = f"s3://{resolve_filesystem(run.location)[1]}"
    for index in range(6):
        assert there.describe("train", index) == here.describe("train", index).replace(str(image_tree), root)
    dataset = there.dataset("train", augment=True)
    shuffled = BatchOptions(shuffle_seed=5, num_workers=num_workers)
    expected = list(batches(here.dataset("train", augment=True), range(6), 4, BatchOptions(shuffle_seed=5)))
    for (images, labels), (wanted, classes) in zip(batches(dataset, range(6), 4, shuffled), expected, strict=True):
        assert torch.equal(images, wanted)
        assert torch.equal(labels, classes)
    run.delete("train/cat/b.png")
    run.write_bytes("train/dog/a/c.png", b"<html>")
    unreadable = UnreadableSamples(2)
    found = batches(there.dataset("train"), range(6), 4, BatchOptions(num_workers=num_workers), unreadable=unreadable)
    assert sum(len(labels) for _, labels in found) == 4
    assert list(unreadable.found) == [f"{root}/train/cat/b.png", f"{root}/train/dog/a/c.png"]


def test_a_class_that_training_lacks_is_named(image_tree: Path, run: RunDirectory) -> None:
    location = copied(image_tree, run)
    run.write_bytes("val/eel/a.png", b"")
    with pytest.raises(DataError, match=r"'s3://bucket/runs/.*/val' holds class 'eel', which"):
        open_image_source(DataSection(name="image_folder", root=location), model_section()).num_samples("val")


@pytest.mark.parametrize("num_workers", [0, 2])
def test_parquet_images_reads_an_object_store(image_tree: Path, run: RunDirectory, num_workers: int) -> None:
    files = sorted((image_tree / "train").rglob("*.png"))
    table = pa.table({"image": [path.read_bytes() for path in files], "label": [int("dog" in str(p)) for p in files]})
    run.write_table("data/train-00000-of-00001.parquet", table)
    run.write_table("data/test-00000-of-00001.parquet", table.slice(0, 2))
    source = open_image_source(DataSection(name="parquet_images", root=run.location), model_section())
    assert (source.num_samples("train"), source.num_samples("test")) == (6, 2)
    got = list(batches(source.dataset("train"), range(6), 4, BatchOptions(num_workers=num_workers)))
    assert torch.cat([labels for _, labels in got]).tolist() == table["label"].to_pylist()
    local = image_tree / "hub"
    for name in ("train-00000-of-00001.parquet", "test-00000-of-00001.parquet"):
        (local / "data").mkdir(parents=True, exist_ok=True)
        (local / "data" / name).write_bytes(run.read_bytes(f"data/{name}"))
    here = open_image_source(DataSection(name="parquet_images", root=str(local)), model_section()).dataset("train")
    assert torch.equal(torch.cat([images for images, _ in got]), torch.stack([here[index][0] for index in range(6)]))


def test_no_credential_is_part_of_a_location(run: RunDirectory) -> None:
    assert os.environ["AWS_SECRET_ACCESS_KEY"] not in run.location
    assert os.environ["AWS_SECRET_ACCESS_KEY"].encode() not in pickle.dumps(run)
