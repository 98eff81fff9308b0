"""`cleanai init` writes studies that `cleanai plan` accepts, or nothing."""

from __future__ import annotations

import json
import sys
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torchvision
import yaml
from jsonschema import Draft7Validator
from PIL import Image
from source_models import write_hf_resnet

from cleanai_ray.cli import main
from cleanai_ray.commands.init import SCHEMA_FILE
from cleanai_ray.commands.study_template import DenseModel, ImageFolder, write_template
from cleanai_ray.config import timm_facts
from cleanai_ray.config.images import TransformSection
from cleanai_ray.config.json_schema import SCHEMA_LINE
from cleanai_ray.config.model_names import ModelName
from cleanai_ray.config.source_facts import SourceFacts
from cleanai_ray.config.study import parse_study

TIMM_IMAGES = {"crop_pct": 0.9, "crop_mode": "center", "interpolation": "bicubic", "mean": [0.5] * 3, "std": [0.5] * 3}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def images(folder: Path) -> Path:
    """Three classes, ten training images and two others of each."""
    for split, count in (("train", 10), ("test", 2)):
        for label in ("ant", "bee", "cow"):
            (folder / "pictures" / split / label).mkdir(parents=True)
            for number in range(count):
                Image.new("RGB", (40, 30), (number, 0, 0)).save(folder / "pictures" / split / label / f"{number}.png")
    return folder / "pictures"


def checked(path: Path) -> dict[str, Any]:
    """The study of a file, which the schema of its first line accepts."""
    text = path.read_text()
    first = text.partition("\n")[0]
    assert first.startswith(SCHEMA_LINE)
    schema = json.loads((path.parent / first.removeprefix(SCHEMA_LINE)).read_text())
    document: dict[str, Any] = yaml.safe_load(text)
    assert list(Draft7Validator(schema).iter_errors(document)) == []
    assert max(map(len, text.splitlines())) <= 120
    return document


def test_without_options_it_is_a_study_that_needs_nothing(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["init"]) == 0
    assert "cleanai plan study.yaml" in capsys.readouterr().out
    assert checked(folder / "study.yaml")["data"]["name"] == "digits"
    assert main(["plan", "study.yaml"]) == 0
    assert "8 trials, 0 of them cached" in capsys.readouterr().out
    before = (folder / "study.yaml").read_text()
    assert main(["init"]) == 2
    assert "'study.yaml' exists" in capsys.readouterr().err
    assert (folder / "study.yaml").read_text() == before


def test_a_folder_of_images_is_looked_into(images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = images.parent / "my studies.yaml"
    assert main(["init", "--from", "squeezenet1_1", "--data", "pictures", "--out", out.name]) == 0
    study = checked(out)
    assert study["name"] == "my_studies"
    assert study["model"] | {"train": None} == {
        "name": "squeezenet1_1",
        "weights": "pretrained",
        "num_classes": 3,
        "input_shape": [3, 224, 224],
        "train": None,
    }
    assert study["data"]["root"] == "pictures"
    assert study["data"]["calibration"] == {"samples": 6}  # a fifth of 30
    assert study["evaluation"]["split"] == "test"
    assert "your images have 30: change it if your model was trained so" in out.read_text()
    assert "cleanai plan 'my studies.yaml'" in capsys.readouterr().out
    assert main(["plan", out.name]) == 0
    assert "6 calibration (withheld from training)" in capsys.readouterr().out
    assert "# transform: {resize: 256, mean" in out.read_text()  # 8/7 of the input


@pytest.mark.parametrize(
    ("words", "facts"),
    [
        (["--from", "resnet19", "--data", "pictures"], ["resnet19", "resnet18"]),
        (["--from", "resnet18"], ["--from", "--data is missing"]),
        (["--weights", "ours.pt"], ["--weights", "--data is missing"]),
        (["--data", "nowhere"], ["--data 'nowhere'", "does not exist"]),
        (["--data", "pictures", "--out", "no/such/file.yaml"], ["no/such"]),
        (["--data", "pictures", "--out", "pictures"], ["exists"]),
    ],
)
def test_what_cannot_be_is_one_line_and_writes_nothing(
    words: list[str], facts: list[str], images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["init", *words]) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    assert all(fact in line for fact in facts)
    assert {path.name for path in images.parent.iterdir()} == {"pictures"}


def test_timm_is_asked_for_where_it_is_missing(images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if find_spec("timm") is not None:
        assert main(["init", "--from", "timm:test_resnet", "--data", "pictures"]) == 0
        return
    assert main(["init", "--from", "timm:test_resnet", "--data", "pictures"]) == 2
    assert "pip install 'cleanai-ray[timm]'" in capsys.readouterr().err


def test_a_model_of_a_source_brings_what_its_source_says(images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("transformers", reason="transformers is not installed")
    write_hf_resnet(images.parent / "ours")  # of three classes, as many as the images have
    assert main(["init", "--from", "hf:./ours", "--data", "pictures"]) == 0
    model = checked(images.parent / "study.yaml")["model"]
    assert model == {"name": "hf:./ours", "weights": "pretrained", "num_classes": 3, "input_shape": [3, 28, 28]}
    assert main(["plan", "study.yaml"]) == 0
    capsys.readouterr()
    assert main(["init", "--from", "hf:./none", "--data", "pictures", "--out", "other.yaml"]) == 2
    assert "--from" in (line := capsys.readouterr().err)
    assert "there is no folder" in line


def test_a_source_without_weights_has_its_model_trained(images: Path) -> None:
    pytest.importorskip("transformers", reason="transformers is not installed")
    write_hf_resnet(images.parent / "untrained")
    (images.parent / "untrained" / "model.safetensors").unlink()  # its configuration alone is left
    assert main(["init", "--from", "hf:./untrained", "--data", "pictures"]) == 0
    model = checked(images.parent / "study.yaml")["model"]
    assert (model["weights"], model["train"]) == (None, {"epochs": 20})
    assert main(["plan", "study.yaml"]) == 0


@pytest.mark.parametrize("where", [{}, {"url": "https://x.org/w.pth"}, {"hf_hub_id": "timm/"}, {"file": "w.pth"}])
def test_timm_is_asked_whether_it_has_weights(where: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """timm's registry has architectures whose configuration names no place of weights, such as EfficientNet-B6."""
    empty = {"url": "", "file": None, "hf_hub_id": None, "num_classes": 1000, "input_size": (3, 528, 528)}
    monkeypatch.setattr(timm_facts, "_pretrained_config", lambda *_: {**empty, **where})
    data = SimpleNamespace(resolve_data_config=lambda *_, **__: {**TIMM_IMAGES, "input_size": empty["input_size"]})
    monkeypatch.setitem(sys.modules, "timm", SimpleNamespace(data=data))
    monkeypatch.setitem(sys.modules, "timm.data", data)
    name = ModelName.parse("timm:efficientnet_b6")
    assert name is not None
    assert timm_facts.read_facts(name, {}).has_weights == bool(where)


def test_weights_that_are_given_are_not_trained(images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(torchvision.models.squeezenet1_1(num_classes=3).state_dict(), "ours.pt")
    words = ["init", "--from", "squeezenet1_1", "--data", "pictures", "--weights"]
    assert main([*words, "ours.pt"]) == 0
    model = checked(images.parent / "study.yaml")["model"]
    assert model["weights"] == "ours.pt"
    assert "train" not in model
    torch.save(torchvision.models.shufflenet_v2_x0_5(num_classes=3).state_dict(), "other.pt")
    for name, fact in (("other.pt", "model.weights 'other.pt' does not fit"), ("none.pt", "does not exist")):
        capsys.readouterr()
        assert main([*words, name, "--out", "other.yaml"]) == 2
        assert fact in capsys.readouterr().err
        assert not (images.parent / "other.yaml").exists()


def test_weights_of_other_classes_are_trained_with_a_new_head(images: Path) -> None:
    torch.save({"state_dict": torchvision.models.squeezenet1_1(num_classes=4).state_dict()}, "ours.pt")
    assert main(["init", "--from", "squeezenet1_1", "--data", "pictures", "--weights", "ours.pt"]) == 0
    model = checked(images.parent / "study.yaml")["model"]
    assert (model["weights"], model["train"]) == ("ours.pt", {"epochs": 5, "learning_rate": 0.01})
    assert main(["plan", "study.yaml"]) == 0


@pytest.mark.parametrize("model", ["resnet50", "timm:resnet50"])
@pytest.mark.parametrize("classes", [12, 1000])
def test_a_template_is_a_study_whatever_the_model(model: str, classes: int) -> None:
    found = ImageFolder(root='odd "name": #1', num_classes=classes, num_training=100_000, evaluated="val")
    facts = SourceFacts(num_classes=1000, input_shape=(3, 240, 240), transform=TransformSection())
    dense = DenseModel(name=model, is_published=True, source=facts if model.startswith("timm:") else None)
    study = parse_study(yaml.safe_load(write_template("s", SCHEMA_FILE, dense, found)))
    assert study.data.root == found.root
    assert study.model.num_classes == classes
    assert study.data.calibration.samples == 1024
    assert study.model.name == model
    assert study.model.input_shape == ((3, 240, 240) if model.startswith("timm:") else (3, 224, 224))
    # The published weights are for 1000 classes: for others, the study trains them with a new head.
    assert study.model.weights == "pretrained"
    assert (study.model.train is None) == (classes == 1000)


def test_a_template_of_a_model_without_published_weights_trains_it() -> None:
    found = ImageFolder(root="images", num_classes=3, num_training=100, evaluated="val")
    study = parse_study(yaml.safe_load(write_template("s", SCHEMA_FILE, DenseModel(name="resnet20"), found)))
    assert study.model.weights is None
    assert study.model.train is not None
