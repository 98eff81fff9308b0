"""The scenarios that ship run on small trees of their real data sets' formats, two images a class and split."""

from __future__ import annotations

import functools
import pickle
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import small_study as small
from PIL import Image
from sklearn.datasets import load_digits

from cleanai_ray.config.study import load_study

pytestmark = pytest.mark.slow

STUDIES = Path(__file__).parents[2] / "jobs" / "studies"
SHORT = [
    "finetune.epochs=1",
    "evaluation.latency={batch_sizes: [1], warmup: 1, runs: 5}",
    "resources={calibration_actors: 1, max_concurrent_trials: 1}",
    "data.num_workers=0",
    "repair={compensation: none, batch_norm: none}",
    "pruning.round_to=null",  # so that each group keeps what its ratio says, to the channel
]
TINY = [
    *SHORT,
    "model.num_classes=3",
    "model.weights=null",
    "model.input_shape=[3,64,64]",
    "data.calibration.samples=2",
]


digits = functools.cache(load_digits)


def pictures(digit: int, number: int) -> list[Image.Image]:
    """Colour pictures of a handwritten digit."""
    bunch = digits()
    chosen = bunch.images[bunch.target == digit][:number]
    return [Image.fromarray((image * 15).astype(np.uint8)).resize((72, 72)).convert("RGB") for image in chosen]


def write_imagenet(root: Path) -> None:
    for digit in range(3):
        for split, part in (("train", slice(0, 2)), ("val", slice(2, 4))):
            folder = root / split / f"n0000000{digit}"
            folder.mkdir(parents=True)
            for index, picture in enumerate(pictures(digit, 4)[part]):
                picture.save(folder / f"{folder.name}_{index}.JPEG")


def write_food101(root: Path) -> None:
    names = ["apple_pie", "sushi", "waffles"]
    lists: dict[str, list[str]] = {"train": [], "test": []}
    for digit, name in enumerate(names):
        folder = root / "images" / name
        folder.mkdir(parents=True)
        for index, picture in enumerate(pictures(digit, 4)):
            picture.save(folder / f"{index}.jpg")
            lists["train" if index < 2 else "test"].append(f"{name}/{index}")
    (root / "meta").mkdir()
    (root / "meta" / "classes.txt").write_text("\n".join(names))
    for split, lines in lists.items():
        (root / "meta" / f"{split}.txt").write_text("\n".join(lines))


def write_cifar10(root: Path) -> None:
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    samples = [(pictures(digit, 6)[index], digit) for index in range(6) for digit in range(10)]
    for number, name in enumerate([*(f"data_batch_{batch}" for batch in range(1, 6)), "test_batch"]):
        part = samples[10 * number : 10 * number + 10]
        pixels = [np.asarray(picture.resize((32, 32))).transpose(2, 0, 1).reshape(-1) for picture, _ in part]
        content = {b"data": np.stack(pixels), b"labels": [digit for _, digit in part]}
        (folder / name).write_bytes(pickle.dumps(content, protocol=2))


# Every method runs in one scenario of each data set; the others differ in ratio, mode or repair alone.
FEW = "sweep.methods=[coverage]"
CASES = {
    "ts1_resnet18_cifar10": (
        write_cifar10,
        [*SHORT, "data.options={}", "model.train={epochs: 1}", "sweep.coverage_metrics=[combined]"],
        8,
    ),
    "ts2_resnet50_imagenet": (write_imagenet, TINY, 4),
    "ts3_resnet50_imagenet_local": (write_imagenet, [*TINY, FEW], 1),
    "ts4_resnet50_imagenet_global": (write_imagenet, [*TINY, FEW, "repair={compensation: closed_form}"], 1),
    "ts5_efficientnet_b4_food101_local": (write_food101, TINY, 4),
    "ts6_efficientnet_b4_food101_global": (write_food101, [*TINY, FEW], 1),
}


@pytest.mark.parametrize("name", CASES)
def test_a_scenario_runs_on_a_small_tree_of_its_data(tmp_path, name):
    write, overrides, num_trials = CASES[name]
    write(tmp_path / "data")
    calibration = ["data.calibration.samples=20", "data.batch_size=10"] if "cifar" in name else ["data.batch_size=4"]
    study = load_study(STUDIES / f"{name}.yaml", [*overrides, *calibration, f"data.root={tmp_path / 'data'}"])
    failed, said = small.run(study, tmp_path / "run")
    assert failed == 0, said
    rows = pq.read_table(tmp_path / "run" / "results.parquet").to_pylist()
    assert len(rows) == num_trials
    ratio = study.sweep.ratios[0]
    for row in rows:
        # Each group keeps int(C x (1 - ratio)), so that a little more than the ratio goes, never less.
        assert ratio - 1e-9 <= row["channel_ratio_achieved"] < ratio + 0.05
        assert row["macs"] < row["macs_dense"]
        assert row["epochs_run"] == 1
