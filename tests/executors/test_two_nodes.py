"""A trial on two workers goes on when the node of one is lost."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import small_study as small

from cleanai_ray.data.fashion_mnist import read_idx
from cleanai_ray.storage import schemas

pytestmark = [pytest.mark.ray, pytest.mark.slow]


def shortened(root: Path, folder: Path) -> Path:
    """Write a folder of Fashion-MNIST's own format with the first images of each of its files."""
    folder.mkdir()
    for split, number in (("train", 4_000), ("t10k", 300)):
        for kind in ("images-idx3", "labels-idx1"):
            values = read_idx(root / f"{split}-{kind}-ubyte.gz")[:number]
            header = bytes([0, 0, 8, values.ndim]) + np.array(values.shape, ">u4").tobytes()
            (folder / f"{split}-{kind}-ubyte").write_bytes(header + values.tobytes())
    return folder


def test_a_trial_on_two_nodes_that_loses_one_goes_on_with_the_other(
    fashion_mnist_root, reference_weights, tmp_path: Path
) -> None:
    settings = {
        "name": "two_workers",
        "model": {"name": "resnet20", "weights": str(reference_weights), "num_classes": 10, "input_shape": [1, 28, 28]},
        "data": {
            "name": "fashion_mnist",
            "root": str(shortened(fashion_mnist_root, tmp_path / "images")),
            "calibration": {"samples": 128, "shard_size": 64},
        },
        "sweep": {"methods": ["magnitude"], "budgets": [{"macs": 0.5}], "quantization": ["none", "bf16"]},
        "repair": {"compensation": "none", "batch_norm": "none"},
        "finetune": {"epochs": 3, "num_workers": 2, "save_every_n_epochs": 1, "batch_size": 100, "learning_rate": 0.05},
        "evaluation": {"latency": None},
    }
    said = small.run_on_two_nodes(settings, tmp_path, "cache/checkpoints/magnitude*")
    assert "killed the raylet of the second node" in said
    assert "2 of 2 trials succeeded" in said
    row, cast = small.timeless_table(tmp_path / "run")
    assert (row["status"], row["epochs_run"]) == (cast["status"], cast["epochs_run"]) == ("ok", 3)
    assert row["accuracy_pruned"] < 0.3
    assert row["accuracy_finetuned"] == cast["accuracy_finetuned"] > 0.7
    assert cast["accuracy_quantized"] == pytest.approx(row["accuracy"], abs=0.05)
    epochs = small.timeless_table(tmp_path / "run", schemas.HISTORY_FILE)
    assert [(epoch["trial_id"], epoch["epoch"]) for epoch in epochs] == [
        (trial["trial_id"], epoch) for trial in (row, cast) for epoch in (1, 2, 3)
    ]
    assert epochs[2]["train_accuracy"] > 0.6
    assert not list((tmp_path / "run" / "cache" / "checkpoints").glob("*"))
