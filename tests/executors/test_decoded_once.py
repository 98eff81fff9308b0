"""A whole study of JPEGs decodes each image of calibration and evaluation once, and scores as without keeping them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import small_study as small
from PIL import Image
from sklearn.datasets import load_digits

from cleanai_ray.config.study import parse_study
from cleanai_ray.data.reading import DECODE_LOG
from cleanai_ray.stages.workspace import open_workspace

STUDY = {
    "name": "decoded-once",
    "model": {"name": "resnet20", "num_classes": 3, "input_shape": [3, 16, 16]},
    "data": {"name": "image_folder", "batch_size": 8, "calibration": {"samples": 24, "shard_size": 10}},
    "sweep": {"methods": ["coverage", "reconstruction"], "ratios": [0.3], "modes": ["global"]},
    "repair": {"compensation": "auto", "batch_norm": "auto"},
    "finetune": {"epochs": 0},
    "evaluation": {"split": "val", "latency": None},
}


@pytest.fixture
def jpegs(tmp_path: Path) -> Path:
    """60 training images and 18 others of three digits."""
    bunch = load_digits(n_class=3)
    for number, (image, label) in enumerate(zip(bunch.images[:78], bunch.target[:78], strict=True)):
        folder = tmp_path / "jpegs" / ("train" if number < 60 else "val") / f"digit{label}"
        folder.mkdir(parents=True, exist_ok=True)
        grey = Image.fromarray((image * 255 / 16).astype(np.uint8)).resize((24, 20))
        Image.merge("RGB", (grey, grey.rotate(90), grey)).save(folder / f"{number}.jpg", quality=90)
    return tmp_path / "jpegs"


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_study_decodes_each_image_once(jpegs, tmp_path, monkeypatch, num_workers):
    log = tmp_path / "decodes"
    monkeypatch.setenv(DECODE_LOG, str(log))
    rows = {}
    for name, cache in (("kept", {"folder": str(tmp_path / "kept")}), ("not kept", None)):
        data = {**STUDY["data"], "root": str(jpegs), "num_workers": num_workers, "cache": cache}
        study = parse_study({**STUDY, "data": data})
        failed, said = small.run(study, tmp_path / name)
        assert failed == 0, said
        rows[name] = small.timeless_table(tmp_path / name)
        decodes = Counter(log.read_text().splitlines())
        log.unlink()
        workspace = open_workspace(study.model_dump_json(), "cpu")
        roles = workspace.roles
        places = [workspace.source.describe("train", int(index)) for index in roles.calibration]
        places += [workspace.source.describe("val", int(index)) for index in roles.evaluation]
        assert len(set(places)) == 24 + 18
        if name == "kept":
            assert decodes == Counter(places)
        else:
            assert set(decodes) == set(places)
            assert min(decodes.values()) > 1
    assert rows["kept"] == rows["not kept"]
    assert len(rows["kept"]) == 2
