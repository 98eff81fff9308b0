"""Models of timm by name and by folder: weights, inputs, classes and preprocessing are theirs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image
from source_models import MEAN, MODEL_ORDER, STD, new_weights, write_images, write_timm

from cleanai_ray.config.sections import DataSection, ModelSection
from cleanai_ray.config.study import parse_study
from cleanai_ray.data import open_image_source
from cleanai_ray.errors import ModelError, StudyError
from cleanai_ray.models import build_model, example_input, ignored_layers

try:
    import timm
except ImportError:
    timm = None

needs_timm = pytest.mark.skipif(timm is None, reason="timm is not installed")


@needs_timm
def test_a_folder_alone_gives_weights_classes_and_inputs(tmp_path):
    model = write_timm(tmp_path)
    section = ModelSection(name=f"timm:{tmp_path}")
    assert (section.weights, section.num_classes, section.input_shape) == ("pretrained", 3, (3, 32, 32))
    built, images = build_model(section), example_input(section, 4)
    with torch.no_grad():
        assert torch.equal(built(images), model(images))
    assert ignored_layers(section) == ("fc",)


@needs_timm
def test_a_name_takes_its_weights_from_a_file(tmp_path):
    model = new_weights(timm.create_model("test_resnet"))
    torch.save({"state_dict": {f"module.{key}": value for key, value in model.state_dict().items()}}, tmp_path / "w.pt")
    section = ModelSection(name="timm:test_resnet.r160_in1k", weights=str(tmp_path / "w.pt"))
    assert (section.num_classes, section.input_shape) == (1000, (3, 160, 160))
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(build_model(section)(images), model(images))


@needs_timm
def test_a_network_for_inputs_of_one_size_is_built_for_the_studys():
    section = ModelSection(name="timm:test_vit", weights=None, input_shape=(3, 32, 48), num_classes=4)
    assert build_model(section)(torch.zeros(1, 3, 32, 48)).shape == (1, 4)
    resized = ModelSection(name="timm:test_resnet", weights=None, input_shape=(1, 32, 32), num_classes=4)
    assert build_model(resized)(torch.zeros(1, 1, 32, 32)).shape == (1, 4)


@needs_timm
@pytest.mark.parametrize(
    "config",
    [
        {},
        {"crop_pct": 0.75, "interpolation": "bilinear"},
        {"crop_mode": "squash"},
        {"crop_mode": "squash", "crop_pct": 1},
    ],
)
def test_images_are_prepared_as_timm_validates(tmp_path, config):
    model = write_timm(tmp_path / "model", **config)
    write_images(tmp_path / "images", per_class=1)
    reference = timm.data.create_transform(**timm.data.resolve_model_data_config(model), is_training=False)
    section = ModelSection(name=f"timm:{tmp_path / 'model'}")
    source = open_image_source(DataSection(name="image_folder", root=str(tmp_path / "images")), section)
    assert source.class_names == MODEL_ORDER
    for index in range(3):
        image = Image.open(source.describe("val", index))
        assert torch.allclose(source.dataset("val")[index][0], reference(image), atol=1e-6)


@needs_timm
def test_other_inputs_are_resized_in_proportion(tmp_path):
    write_timm(tmp_path / "model", crop_mode="squash", crop_pct=0.8)
    write_images(tmp_path / "images", per_class=1, sides=(80, 70))
    section = ModelSection(name=f"timm:{tmp_path / 'model'}", input_shape=(3, 64, 48))
    steps = open_image_source(DataSection(name="image_folder", root=str(tmp_path / "images")), section).preprocessing
    assert (steps.resize, steps.crop, steps.mean, steps.std) == ((80, 60), (64, 48), MEAN, STD)


@needs_timm
@pytest.mark.parametrize(
    ("model", "words"),
    [
        ({"name": "timm:resnet5o"}, ["'timm:resnet5o'", "timm has no model", "close: ", "resnet50"]),
        ({"name": "timm:resnet50.no_tag"}, ["resnet50.no_tag", "no_tag"]),
        ({"name": "timm:/nowhere"}, ["there is no folder '/nowhere'"]),
    ],
)
def test_an_unknown_name_is_one_sentence(model, words):
    with pytest.raises(StudyError) as caught:
        parse_study({"model": model})
    assert "\n" not in str(caught.value)
    assert all(word in str(caught.value) for word in words), caught.value


@needs_timm
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"depth": 3}, ["model.options", "'depth'"]),
        ({"num_classes": 3}, ["'num_classes'", "model.num_classes"]),
    ],
)
def test_options_that_do_not_fit_are_named(options, words):
    section = ModelSection(name="timm:test_resnet", weights=None, options=options, num_classes=3)
    with pytest.raises(ModelError) as caught:
        build_model(section)
    assert all(word in str(caught.value) for word in words), caught.value


@needs_timm
def test_weights_that_cannot_be_downloaded_say_what_serves(tmp_path, monkeypatch, no_network):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # else it tries for most of a minute
    section = ModelSection(name="timm:test_resnet.r160_in1k", options={"cache_dir": str(tmp_path)})
    with pytest.raises(ModelError, match=r"cannot be loaded .*allowed without internet access: a folder"):
        build_model(section)


def test_a_missing_package_is_named_with_its_extra(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "timm", None)
    with pytest.raises(StudyError, match=r"needs the package timm: pip install 'cleanai-ray\[timm\]'"):
        parse_study({"model": {"name": "timm:resnet50"}})


def test_the_words_of_a_folder_are_told_from_names(tmp_path, monkeypatch):
    from cleanai_ray.config.model_names import ModelName

    monkeypatch.chdir(tmp_path)
    (tmp_path / "ours").mkdir()
    (tmp_path / "ours" / "config.json").write_text("{}")
    parsed = {
        name: ModelName.parse(name)
        for name in ("timm:ours", "hf:./x", "hf:~/x", "timm:local-dir:x", "hf:owner/name", "timm:hf-hub:ours")
    }
    folders = {name: None if found is None else found.folder for name, found in parsed.items()}
    assert folders == {
        "timm:ours": tmp_path / "ours",
        "hf:./x": tmp_path / "x",
        "hf:~/x": Path("~/x").expanduser(),
        "timm:local-dir:x": tmp_path / "x",
        "hf:owner/name": None,
        "timm:hf-hub:ours": None,
    }
    assert [ModelName.parse(name) for name in ("resnet50", "timm:", None, 3)] == [None] * 4
