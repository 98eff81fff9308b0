"""Image classifiers of transformers by the name of a folder: weights, inputs, classes and preprocessing are theirs."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from source_models import CLASSES, MEAN, MODEL_ORDER, STD, write_hf_resnet, write_hf_vit, write_images
from torch import nn

import cleanai_ray as cleanai
from cleanai_ray.config.huggingface_facts import _normalisation
from cleanai_ray.config.sections import DataSection, ModelSection
from cleanai_ray.config.source_facts import _facts
from cleanai_ray.config.study import parse_study
from cleanai_ray.data import open_image_source
from cleanai_ray.errors import DataError, ModelError, StudyError
from cleanai_ray.models import build_model, example_input, ignored_layers

pytest.importorskip("transformers", reason="transformers is not installed")

WRITERS = {"resnet": write_hf_resnet, "vit": write_hf_vit}


@pytest.fixture(params=WRITERS)
def written(request, tmp_path) -> tuple[Path, nn.Module]:
    return tmp_path / "model", WRITERS[request.param](tmp_path / "model")


def test_a_name_alone_gives_weights_classes_and_inputs(written):
    folder, model = written
    section = ModelSection(name=f"hf:{folder}")
    side = 32 if "vit" in type(model).__name__.lower() else 28
    assert (section.weights, section.num_classes, section.input_shape) == ("pretrained", 3, (3, side, side))
    built, images = build_model(section), example_input(section, 4)
    with torch.no_grad():
        assert torch.equal(built(images), model(images).logits)
    assert list(built.state_dict()) == list(model.state_dict())
    assert ignored_layers(section) == (("classifier",) if side == 32 else ("classifier.1",))


def test_a_section_that_was_written_out_asks_the_folder_for_nothing(written):
    folder, _ = written
    section = ModelSection(name=f"hf:{folder}")
    (folder / "config.json").unlink()
    _facts.cache_clear()
    assert ModelSection.model_validate(section.model_dump()) == section


def test_null_weights_are_random_ones(written):
    folder, model = written
    built = build_model(ModelSection(name=f"hf:{folder}", weights=None))
    assert not torch.equal(next(built.parameters()), next(model.parameters()))


def test_a_weights_file_takes_the_place_of_the_folders(written, tmp_path):
    folder, model = written
    state = {f"model.{name}": value + 1 for name, value in model.state_dict().items() if value.is_floating_point()}
    torch.save({"state_dict": state}, tmp_path / "w.ckpt")
    built = build_model(ModelSection(name=f"hf:{folder}", weights=str(tmp_path / "w.ckpt")))
    first = next(name for name, _ in model.named_parameters())
    assert torch.equal(built.state_dict()[first], model.state_dict()[first] + 1)


@pytest.mark.parametrize(
    ("write", "processor"),
    [
        (write_hf_resnet, {}),
        (write_hf_resnet, {"size": {"shortest_edge": 28}, "resample": 2}),
        (write_hf_resnet, {"size": {"shortest_edge": 384}}),
        (write_hf_vit, {}),
        (write_hf_vit, {"size": {"height": 40, "width": 44}, "do_center_crop": True, "crop_size": 32}),
        (write_hf_vit, {"size": {"shortest_edge": 38}, "do_center_crop": True, "crop_size": 32}),
        (write_hf_vit, {"do_normalize": False}),
        (write_hf_vit, {"do_rescale": False, "do_normalize": False}),
        (write_hf_vit, {"rescale_factor": 1 / 127.5, "image_mean": [1.0] * 3}),
    ],
)
def test_images_are_prepared_as_the_processor_prepares_them(tmp_path, write, processor):
    from transformers import AutoImageProcessor

    write(tmp_path / "model", **processor)
    write_images(tmp_path / "images", per_class=1, sides=(52, 40))
    section = ModelSection(name=f"hf:{tmp_path / 'model'}")
    source = open_image_source(DataSection(name="image_folder", root=str(tmp_path / "images")), section)
    reference = AutoImageProcessor.from_pretrained(tmp_path / "model", backend="pil")
    for index in range(3):
        image = Image.open(source.describe("val", index))
        expected = torch.as_tensor(np.asarray(reference(image)["pixel_values"][0], dtype=np.float32))
        scale = float(expected.abs().max())
        assert source.dataset("val")[index][0].shape == expected.shape
        assert torch.allclose(source.dataset("val")[index][0], expected, atol=1e-5 * max(1.0, scale))


def test_efficientnets_classifiers_are_normalised_twice():
    # x = value * 255 / 127.5 - 1, then (x - 0) / 0.5, then / 0.5 again: 8 value - 4, so mean 0.5 and deviation 0.125.
    kind = type("EfficientNetImageProcessor", (SimpleNamespace,), {})
    processor = kind(
        do_normalize=True,
        do_rescale=True,
        image_mean=[0.0] * 3,
        image_std=[0.5] * 3,
        rescale_factor=1 / 127.5,
        rescale_offset=True,
        include_top=True,
    )
    mean, std = _normalisation(processor)
    assert mean == pytest.approx([0.5] * 3)
    assert std == pytest.approx([0.125] * 3)


def test_the_study_has_the_last_word_on_preprocessing(tmp_path):
    write_hf_resnet(tmp_path / "model")
    write_images(tmp_path / "images", per_class=1)
    section = ModelSection(name=f"hf:{tmp_path / 'model'}")
    data = DataSection(name="image_folder", root=str(tmp_path / "images"), transform={"mean": [0.1] * 3, "resize": 30})
    steps = open_image_source(data, section).preprocessing
    assert (steps.mean, steps.std, steps.resize, steps.crop) == ((0.1,) * 3, STD, 30, (28, 28))
    assert open_image_source(data.model_copy(update={"transform": None}), section).preprocessing.mean == MEAN


def test_classes_are_numbered_as_the_models(tmp_path):
    write_hf_resnet(tmp_path / "model")
    write_images(tmp_path / "images", per_class=2)
    data = DataSection(name="image_folder", root=str(tmp_path / "images"))
    source = open_image_source(data, ModelSection(name=f"hf:{tmp_path / 'model'}"))
    assert source.class_names == MODEL_ORDER
    for index in range(6):
        label = source.dataset("val")[index][1]
        assert f"/{MODEL_ORDER[label]}/" in source.describe("val", index)
    trained = ModelSection(name=f"hf:{tmp_path / 'model'}", train={"epochs": 1})
    assert open_image_source(data, trained).class_names == CLASSES


def test_classes_of_other_names_are_told(tmp_path, caplog):
    write_hf_resnet(tmp_path / "model")
    write_images(tmp_path / "images", per_class=1)
    for split in ("train", "val"):
        (tmp_path / "images" / split / CLASSES[1]).rename(tmp_path / "images" / split / "n02084071")
    data = DataSection(name="image_folder", root=str(tmp_path / "images"))
    source = open_image_source(data, ModelSection(name=f"hf:{tmp_path / 'model'}"))
    number = sorted({*CLASSES, "n02084071"} - {CLASSES[1]}).index("n02084071")
    assert source.class_names[number] == "n02084071"
    assert f"class {number} is 'n02084071' in data set 'image_folder' and '{MODEL_ORDER[number]}' in hf:" in caplog.text
    assert "look at the dense accuracy" in caplog.text


def test_a_data_set_of_fixed_numbers_says_that_they_are_others(tmp_path):
    write_hf_resnet(tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    names = [str(digit) for digit in reversed(range(10))]
    config["id2label"], config["label2id"] = dict(enumerate(names)), {name: n for n, name in enumerate(names)}
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    section = ModelSection(name=f"hf:{tmp_path / 'model'}", weights=None)
    with pytest.raises(DataError, match=r"class 0 of data set 'digits' is '0' and that of the model '9'"):
        open_image_source(DataSection(name="digits"), section)


def test_data_in_memory_take_the_mean_of_the_source(tmp_path):
    write_hf_vit(tmp_path / "model", image_std=[0.25] * 3)
    section = ModelSection(name=f"hf:{tmp_path / 'model'}", num_classes=10)
    pixels = open_image_source(DataSection(name="digits"), section).pixels  # type: ignore[attr-defined]
    assert (pixels.mean, pixels.std) == ((0.5,), (0.25,))
    own = DataSection(name="digits", transform={"mean": [0.3]})
    pixels = open_image_source(own, section).pixels  # type: ignore[attr-defined]
    assert (pixels.mean, pixels.std) == ((0.3,), (0.25,))


def test_weights_that_lack_layers_are_refused(tmp_path):
    model = write_hf_resnet(tmp_path / "model")
    state = {name: value for name, value in model.state_dict().items() if "stages.1" not in name}
    model.save_pretrained(tmp_path / "model", state_dict=state)
    with pytest.raises(ModelError, match=r"do not fit its configuration: they lack resnet\.encoder\.stages\.1"):
        build_model(ModelSection(name=f"hf:{tmp_path / 'model'}"))


def test_another_number_of_classes_gets_a_new_head(tmp_path, caplog):
    model = write_hf_resnet(tmp_path / "model")
    built = build_model(ModelSection(name=f"hf:{tmp_path / 'model'}", num_classes=5))
    assert built.classifier[1].out_features == 5
    assert torch.equal(next(built.parameters()), next(model.parameters()))
    assert "the source has 3 classes" in caplog.text


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"name": "hf:/nowhere/at/all"}, ["model.name", "there is no folder '/nowhere/at/all'"]),
        ({"options": {"no_such_key": 1}}, ["model.options holds 'no_such_key'"]),
    ],
)
def test_faults_are_one_sentence(tmp_path, change, words):
    write_hf_resnet(tmp_path / "model")
    study = {
        "model": {"name": f"hf:{tmp_path / 'model'}", **change},
        "data": {"name": "digits"},
        "sweep": {"methods": ["random"], "ratios": [0.5]},
    }
    with pytest.raises(StudyError) as caught:
        parse_study(study)
    assert "\n" not in str(caught.value)
    assert all(word in str(caught.value) for word in words), caught.value


def test_a_missing_package_is_named_with_its_extra(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    with pytest.raises(StudyError, match=r"needs the package transformers: pip install 'cleanai-ray\[transformers\]'"):
        parse_study({"model": {"name": "hf:owner/name"}})


def test_a_model_of_a_name_is_pruned_in_python(tmp_path):
    write_hf_resnet(tmp_path / "model")
    model, images = build_model(f"hf:{tmp_path / 'model'}"), torch.randn(10, 3, 28, 28)
    result = cleanai.prune(model, images[:1], [images], method="magnitude", ratio=0.5, repair=True)
    cleanai.save(result, tmp_path / "small")
    small = cleanai.load(tmp_path / "small", lambda: build_model(f"hf:{tmp_path / 'model'}"))
    assert torch.equal(small.eval()(images), result.model.eval()(images))
