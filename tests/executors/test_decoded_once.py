"""A whole study of JPEGs decodes each image of calibration and evaluation once, and scores as without keeping them."""

from __future__ import annotations

import io
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import small_study as small
from PIL import Image
from sklearn.datasets import load_digits
from torchvision.transforms.functional import pil_to_tensor

from cleanai_ray.config.study import parse_study
from cleanai_ray.data import decoder_choice, loading
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


@pytest.fixture(autouse=True)
def _fresh_workers() -> None:
    """Keep no workers that know an object store of earlier tests: a server with an older environment starts those."""
    for workers in list(loading._workers.values()):
        loading._forget(workers)


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


def test_a_study_decodes_each_image_once_by_a_decoder_of_many(jpegs, tmp_path, monkeypatch):
    def decode(contents):
        calls.append(len(contents))
        return [pil_to_tensor(Image.open(io.BytesIO(content))) for content in contents]

    calls, log = [], tmp_path / "decodes"
    monkeypatch.setattr(decoder_choice, "_chosen", {})
    monkeypatch.setattr(decoder_choice, "_decoder_on", lambda device: ("a chip", decode))
    monkeypatch.setenv(DECODE_LOG, str(log))
    data = {**STUDY["data"], "root": str(jpegs), "num_workers": 2, "cache": {"folder": str(tmp_path / "kept")}}
    failed, said = small.run(parse_study({**STUDY, "data": data}), tmp_path / "run")
    assert failed == 0, said
    decodes = Counter(log.read_text().splitlines())
    assert len(decodes) == 24 + 18
    assert set(decodes.values()) == {1}
    assert sum(calls) == 2 * 8 + 24 + 18  # eight are compared, as decoded and as resized
    assert max(calls[2:]) == 8
