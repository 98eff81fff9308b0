"""Every registered family and any torchvision classifier: shapes, names, determinism, errors."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from cleanai_ray.config.sections import ModelSection
from cleanai_ray.errors import ModelError
from cleanai_ray.models import build_model, example_input, ignored_layers
from cleanai_ray.models.resnet20 import ResNetCifar
from cleanai_ray.registry import MODELS

SMALL = ["alexnet", "squeezenet1_1", "mnasnet0_5", "shufflenet_v2_x0_5", "mobilenet_v3_small", "regnet_x_400mf"]


def section(name: str, channels: int = 3, size: int = 64, **fields) -> ModelSection:
    return ModelSection(name=name, input_shape=(channels, size, size), **{"num_classes": 7, **fields})


def test_the_families_of_the_design_are_registered():
    expected = {
        "resnet20",
        "resnet18",
        "resnet50",
        "mobilenet_v2",
        "efficientnet_b4",
        "vgg16_bn",
        "densenet121",
        "vit_b_16",
    }
    assert expected <= set(MODELS.names())
    assert all(summary and "\n" not in summary for summary in MODELS.summaries().values())


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", MODELS.names())
def test_a_family_maps_images_to_one_score_a_class(name: str, channels: int):
    spec = section(name, channels, size=32)
    model = build_model(spec)
    inputs = example_input(spec, batch_size=2)
    assert inputs.shape == (2, channels, 32, 32)
    assert not model.training
    with torch.no_grad():
        assert model(inputs).shape == (2, 7)
    (classifier,) = ignored_layers(spec)
    layer = model.get_submodule(classifier)
    assert isinstance(layer, nn.Linear)
    assert layer.out_features == 7


@pytest.mark.parametrize("name", SMALL)
def test_any_torchvision_classifier_can_be_named(name: str):
    spec = section(name, channels=1)
    model = build_model(spec)
    with torch.no_grad():
        assert model(example_input(spec)).shape == (1, 7)
    (classifier,) = ignored_layers(spec)
    layer = model.get_submodule(classifier)
    assert getattr(layer, "out_features", None) == 7 or getattr(layer, "out_channels", None) == 7


def test_auxiliary_classifiers_are_off():
    model = build_model(section("googlenet"))
    model.train()
    assert isinstance(model(torch.zeros(2, 3, 64, 64)), torch.Tensor)


def test_resnet20_has_the_parameters_that_its_definition_implies():
    # conv1, then per stage: 3x3 convolutions, batch-norms (2 a channel), 1x1 shortcuts; then fc.
    def block(inputs: int, outputs: int) -> int:
        shortcut = 0 if inputs == outputs else inputs * outputs + 2 * outputs
        return 9 * inputs * outputs + 9 * outputs * outputs + 4 * outputs + shortcut

    stages = sum(block(i, o) + 2 * block(o, o) for i, o in ((16, 16), (16, 32), (32, 64)))
    expected = 9 * 16 + 2 * 16 + stages + 64 * 10 + 10
    assert expected == 272_186
    model = ResNetCifar(10, 1, (16, 32, 64))
    assert sum(parameter.numel() for parameter in model.parameters()) == expected


def test_a_small_image_stem_keeps_the_resolution():
    plain, small = build_model(section("resnet18")), build_model(section("resnet18", options={"cifar_stem": True}))
    shapes = []
    for model in (plain, small):
        handle = model.layer1.register_forward_hook(lambda _m, _i, output: shapes.append(tuple(output.shape[-2:])))
        with torch.no_grad():
            model(torch.zeros(1, 3, 64, 64))
        handle.remove()
    assert shapes == [(16, 16), (64, 64)]
    assert small.conv1.kernel_size == (3, 3)


def test_a_small_vgg_has_the_layers_that_its_options_name():
    model = build_model(section("vgg_small", 1, 28, options={"layers": [8, "M", 12, 16], "hidden": 20}))
    # 3x3 convolutions without bias, batch-norms (2 a channel), and the two linear layers of the classifier.
    convolutions = 9 * (1 * 8 + 8 * 12 + 12 * 16) + 2 * (8 + 12 + 16)
    assert sum(parameter.numel() for parameter in model.parameters()) == convolutions + 17 * 20 + 21 * 7
    assert model.features(torch.zeros(1, 1, 28, 28)).shape == (1, 16, 14, 14)


def test_a_small_stem_of_mobilenet_keeps_the_resolution():
    setting = [[1, 16, 1, 1], [6, 24, 2, 2]]
    options = {"width_mult": 0.5, "inverted_residual_setting": setting}
    plain, small = (
        build_model(section("mobilenet_v2", 1, 28, options={**options, "small_stem": stem})) for stem in (False, True)
    )
    assert plain.features(torch.zeros(1, 1, 28, 28)).shape[-2:] == (7, 7)
    assert small.features(torch.zeros(1, 1, 28, 28)).shape[-2:] == (14, 14)


def test_a_small_vit_has_a_token_for_each_patch_and_one_for_the_class():
    model = build_model(section("vit_small_images", 1, 28, options={"patch_size": 7, "num_layers": 2}))
    assert model.encoder.pos_embedding.shape == (1, 4 * 4 + 1, 64)
    assert len(model.encoder.layers) == 2


def test_vit_positions_follow_the_input_shape():
    model = build_model(section("vit_b_16", size=48))
    assert model.encoder.pos_embedding.shape[1] == 3 * 3 + 1


def test_initialisation_depends_on_the_seed_alone_and_leaves_the_global_state():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first = build_model(section("resnet20"), seed=1)
    assert torch.equal(torch.rand(3), expected)
    torch.manual_seed(99)
    again, other = build_model(section("resnet20"), seed=1), build_model(section("resnet20"), seed=2)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert not torch.equal(first.conv1.weight, other.conv1.weight)


def test_example_inputs_are_repeatable_and_not_zero():
    spec = section("resnet20")
    assert torch.equal(example_input(spec, 3), example_input(spec, 3))
    assert example_input(spec, 3).std() > 0.9


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (section("resnet19"), ["'resnet19'", "resnet20", "vit_b_16", "close:", "resnet18"]),
        (section("efficientnet_b44"), ["'efficientnet_b44'", "close:", "efficientnet_b5"]),
        (section("resnet20", options={"width": 3}), ["'width'", "resnet20", "allowed: none"]),
        (section("resnet18", options={"widht_per_group": 3}), ["resnet18", "widht_per_group"]),
        (section("resnet18", options={"num_classes": 3}), ["'num_classes'", "model.num_classes"]),
        (section("resnet18", options={"cifar_stem": 1}), ["cifar_stem", "1", "true, false"]),
        (section("vit_b_16", options={"image_size": 32}), ["'image_size'", "input_shape"]),
        (section("vit_b_16", size=40), ["[3, 40, 40]", "multiple of its patch size, 16"]),
        (section("inception_v3", size=32), ["inception_v3", "[3, 32, 32]"]),
        (section("vgg_small", options={"layers": [8, "P"]}), ["layers", "[8, 'P']", "M for each max-pooling"]),
        (section("vgg_small", options={"layers": ["M"]}), ["layers", "['M']", "a list of channels"]),
        (section("vgg_small", size=4, options={"layers": [8, "M", "M", "M"]}), ["3 max-poolings", "[3, 4, 4]", "8"]),
        (section("vgg_small", options={"hidden": 0}), ["hidden", "0", "at least 1"]),
        (section("vgg_small", options={"width": 8}), ["'width'", "allowed: layers, hidden"]),
        (section("mobilenet_v2", options={"small_stem": "yes"}), ["small_stem", "'yes'", "true, false"]),
        (section("vit_small_images", options={"image_size": 32}), ["'image_size'", "patch_size"]),
        (section("vit_small_images", options={"patch_size": 7}), ["[3, 64, 64]", "multiple of its patch size, 7"]),
        (section("vit_small_images", options={"hidden_dim": 10}), ["hidden_dim", "10", "multiple of num_heads, 4"]),
        (section("vit_small_images", options={"num_layers": 0.5}), ["num_layers", "0.5", "whole number"]),
    ],
)
def test_what_does_not_go_together_is_one_sentence(spec: ModelSection, words: list[str]):
    with pytest.raises(ModelError) as caught:
        build_model(spec)
    message = str(caught.value)
    assert "\n" not in message
    assert all(word in message for word in words), message
