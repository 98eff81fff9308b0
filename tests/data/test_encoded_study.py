"""A whole study on encoded images: read by `datasets`, preprocessed as it says, and recorded so."""

from __future__ import annotations

import html
import json
import re
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import small_study as small
from image_trees import encoded, write_hub_parquet

from cleanai_ray.config.study import parse_study

pytest.importorskip("datasets", reason="the extra huggingface is not installed")


@pytest.fixture
def settings(tmp_path, digit_images) -> dict:
    """A study on 80 training and 40 test images of four digits, in Parquet."""
    images, labels = digit_images
    rows = np.flatnonzero(labels < 4)
    for split, part in (("train", rows[:80]), ("test", rows[80:120])):
        pixels = [encoded(images[row]) for row in part]
        names = ["zero", "one", "two", "three"]
        write_hub_parquet(tmp_path / "set" / f"{split}.parquet", pixels, labels[part].tolist(), names=names)
    options = {"cache_dir": str(tmp_path / "cache")}
    return {
        "model": {"name": "resnet20", "num_classes": 4, "input_shape": [3, 24, 24], "train": {"epochs": 1}},
        "data": {
            "name": "huggingface",
            "path": str(tmp_path / "set"),
            "options": options,
            "batch_size": 32,
            "calibration": {"samples": 16, "shard_size": 8},
            "transform": {"resize": 30, "interpolation": "bicubic", "std": [0.25, 0.25, 0.25]},
        },
        "sweep": {"methods": ["coverage", "magnitude"], "ratios": [0.3]},
        "repair": {"samples": 16},
        "evaluation": {"latency": None},
    }


def test_a_study_reads_a_library_s_rows_and_records_their_preprocessing(settings: dict, tmp_path: Path) -> None:
    run = tmp_path / "run"
    failed, said = small.run(parse_study(settings), run, report=True)
    assert failed == 0, said
    assert pq.read_table(run / "results.parquet").column("status").to_pylist() == ["ok", "ok"]
    environment = json.loads((run / "environment.json").read_text())
    assert environment["samples"]["evaluation"] == 40
    assert environment["preprocessing"] == {
        "resize": 30,
        "crop": [24, 24],
        "interpolation": "bicubic",
        "antialias": True,
        "mean": [0.485, 0.456, 0.406],
        "std": [0.25, 0.25, 0.25],
        "train_area": 0.08,
        "train_mirror": True,
    }
    page = re.sub(r"\s+", " ", html.unescape((run / "report.html").read_text()))
    expected = "shorter side 30 pixels, bicubic; centre 24 x 24; mean 0.485 0.456 0.406; std 0.25 0.25 0.25"
    assert expected in page
    # Another transform is another study of the same folder: nothing that was measured before is taken for its own.
    other = {**settings, "data": {**settings["data"], "transform": None}}
    failed, said = small.run(parse_study(other), run)
    assert failed == 0, said
    again = json.loads((run / "environment.json").read_text())
    assert again["preprocessing"]["interpolation"] == "bilinear"
    assert again["trials_complete_before"] == 0
