"""The preprocessing of a data set: what the model's pretrained weights ask for, and what a study says instead."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torchvision
from image_trees import colour_image
from PIL import Image

from cleanai_ray.config.sections import DataSection, ModelSection
from cleanai_ray.data import ImageSource, open_image_source
from cleanai_ray.data.encoded import EncodedSource
from cleanai_ray.errors import DataError
from cleanai_ray.models.family import transform_of

WEIGHTS = torchvision.models.get_weight
PUBLISHED = {
    # name in a study: the default weights, and the input they were published for
    "resnet50": ("ResNet50_Weights.IMAGENET1K_V2", 224),
    "efficientnet_b4": ("EfficientNet_B4_Weights.IMAGENET1K_V1", 380),
    "vit_b_16": ("ViT_B_16_Weights.IMAGENET1K_V1", 224),
    "mobilenet_v2": ("MobileNet_V2_Weights.IMAGENET1K_V2", 224),
    "swin_t": ("Swin_T_Weights.IMAGENET1K_V1", 224),
}


@pytest.fixture
def tree(tmp_path, digit_images) -> Path:
    """A class of two photographs' sizes, as JPEG files."""
    for split in ("train", "val"):
        (tmp_path / split / "zero").mkdir(parents=True)
        for number, size in enumerate(((500, 375), (333, 500))):
            image = colour_image(digit_images[0][number], 64).resize(size)
            image.save(tmp_path / split / "zero" / f"{number}.jpg", quality=95)
    return tmp_path


def opened(tree: Path, model: dict, name: str = "image_folder", **data) -> ImageSource:
    return open_image_source(
        DataSection(name=name, root=str(tree), **data), ModelSection(**{"num_classes": 1, **model})
    )


def pretrained(name: str, side: int) -> dict:
    return {"name": name, "weights": "pretrained", "input_shape": (3, side, side)}


@pytest.mark.parametrize("name", PUBLISHED)
def test_pretrained_weights_see_what_they_were_published_with(tree, name):
    weights, side = PUBLISHED[name]
    published = WEIGHTS(weights).transforms()
    source = opened(tree, pretrained(name, side))
    dataset = source.dataset("val")
    for index in range(2):
        image = Image.open(source.describe("val", index)).convert("RGB")
        assert torch.equal(dataset[index][0], published(image))  # to the bit


@pytest.mark.parametrize("weights", ["ResNet50_Weights.IMAGENET1K_V1", "ViT_B_16_Weights.IMAGENET1K_SWAG_E2E_V1"])
def test_a_study_can_ask_for_the_preprocessing_of_other_weights(tree, weights):
    published = WEIGHTS(weights).transforms()
    transform = transform_of(WEIGHTS(weights))
    side = published.crop_size[0]
    source = opened(tree, pretrained("resnet50", side), transform=transform)
    image = Image.open(source.describe("val", 0)).convert("RGB")
    assert torch.equal(source.dataset("val")[0][0], published(image))


def test_every_classifier_of_torchvision_can_be_preprocessed_for():
    count = 0
    for name in torchvision.models.list_models(module=torchvision.models):
        for weights in torchvision.models.get_model_weights(name):
            transform = transform_of(weights)
            assert set(transform.given) == {"resize", "crop", "interpolation", "mean", "std"}
            assert transform.resize >= transform.crop
            count += 1
    assert count > 80


def test_the_proportion_holds_for_other_inputs(tree):
    # ResNet-50: 232 for 224, so 116 for 112; EfficientNet-B4: 384 for 380, so 226.4 for 224.
    for name, side, resize in (("resnet50", 112, 116), ("efficientnet_b4", 224, 226)):
        assert opened(tree, pretrained(name, side)).preprocessing.resize == resize


@pytest.mark.parametrize("weights", [None, "weights.safetensors"])
def test_other_models_keep_the_usual_preprocessing(tree, weights):
    model = {"name": "efficientnet_b4", "weights": weights, "input_shape": (3, 28, 28)}
    steps = opened(tree, model).preprocessing
    assert (steps.resize, steps.crop, steps.interpolation) == (32, (28, 28), "bilinear")  # 28 * 256 / 224
    assert (steps.mean, steps.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def test_a_key_of_the_study_replaces_that_of_the_weights_alone(tree):
    half = (0.5, 0.5, 0.5)
    steps = opened(
        tree, pretrained("resnet50", 224), transform={"mean": half, "interpolation": "bicubic"}
    ).preprocessing
    assert (steps.resize, steps.interpolation, steps.mean) == (232, "bicubic", half)
    assert steps.std == (0.229, 0.224, 0.225)
    assert opened(tree, pretrained("resnet50", 224), transform={"resize": 300}).preprocessing.resize == 300
    model = {"name": "resnet18", "input_shape": (3, 224, 224)}
    steps = opened(tree, model, transform={"std": half}).preprocessing
    assert (steps.resize, steps.mean, steps.std) == (256, (0.485, 0.456, 0.406), half)


def test_height_and_width_are_taken_whatever_the_proportions(tree):
    source = opened(tree, {"name": "resnet18", "input_shape": (3, 48, 64)}, transform={"resize": [52, 70]})
    image = Image.open(source.describe("val", 0)).convert("RGB").resize((70, 52), Image.Resampling.BILINEAR)
    expected = torchvision.transforms.functional.pil_to_tensor(image.crop((3, 2, 67, 50)))
    dataset = source.dataset("val")
    assert torch.equal(dataset.pixels(0)[0], expected)


def test_the_training_transform_interpolates_alike(tree):
    published = {}
    for interpolation in ("nearest", "bicubic"):
        dataset = opened(tree, pretrained("resnet50", 64), transform={"interpolation": interpolation}).dataset(
            "train", augment=True
        )
        torch.manual_seed(3)
        published[interpolation] = dataset.pixels(0)[0]
    torch.manual_seed(3)
    crop = torchvision.transforms.RandomResizedCrop(64, interpolation=Image.Resampling.NEAREST)
    flip = torchvision.transforms.RandomHorizontalFlip()
    image = Image.open(tree / "train" / "zero" / "0.jpg").convert("RGB")
    assert torch.equal(published["nearest"], torchvision.transforms.functional.pil_to_tensor(flip(crop(image))))
    assert not torch.equal(published["nearest"], published["bicubic"])


@pytest.mark.parametrize(
    ("transform", "message"),
    [
        (
            {"crop": 200},
            r"^data\.transform\.crop is 200; allowed with model\.input_shape \[3, 224, 224\]: 224 or null$",
        ),
        ({"resize": 200}, r"^data\.transform\.resize is 200; allowed with .* \[3, 224, 224\]: at least 224$"),
        (
            {"resize": [224, 200]},
            r"^data\.transform\.resize is \[224, 200\]; allowed with .* \[3, 224, 224\]: at least \[224, 224\]$",
        ),
        ({"mean": [0.5]}, r"^data\.transform\.mean is \[0\.5\]; allowed .*'image_folder': 3 numbers, one a channel$"),
        ({"std": [0.5] * 4}, r"^data\.transform\.std is .*: 3 numbers, one a channel$"),
    ],
)
def test_a_transform_that_does_not_fit_is_refused(tree, transform, message):
    with pytest.raises(DataError, match=message):
        opened(tree, {"name": "resnet18"}, transform=transform)


def test_the_centre_of_an_input_that_is_no_square_is_not_named(tree):
    with pytest.raises(DataError, match=r"crop is 64; allowed with model\.input_shape \[3, 64, 96\]: null$"):
        opened(tree, {"name": "resnet18", "input_shape": (3, 64, 96)}, transform={"crop": 64})


def test_data_sets_in_memory_take_mean_and_std_alone():
    grey = ModelSection(name="resnet20", input_shape=(1, 8, 8))
    usual = open_image_source(DataSection(name="digits"), grey).dataset("test")[0][0]
    # Pixels 0 to 16: the usual ones are (x - 0.3053) / 0.3760.
    own = open_image_source(DataSection(name="digits", transform={"mean": [0.5], "std": [0.25]}), grey)
    assert torch.allclose(own.dataset("test")[0][0], (usual * 0.3760 + 0.3053 - 0.5) / 0.25, atol=1e-6)
    for transform, message in (
        ({"resize": 9}, r"^data\.transform holds 'resize'; allowed for data set 'digits': mean, std$"),
        ({"mean": [0.5] * 3}, r"^data\.transform\.mean is .* allowed for data set 'digits': 1 number, one a channel$"),
    ):
        with pytest.raises(DataError, match=message):
            open_image_source(DataSection(name="digits", transform=transform), grey)


def test_pretrained_weights_leave_data_sets_in_memory_alone():
    model = {"name": "resnet18", "num_classes": 10, "input_shape": (3, 8, 8)}
    images = [
        open_image_source(DataSection(name="digits"), ModelSection(**model, weights=weights)).dataset("test")[0][0]
        for weights in (None, "pretrained")
    ]
    assert torch.equal(*images)


def test_the_record_of_a_run_says_how_images_were_preprocessed(tree):
    source = opened(tree, pretrained("efficientnet_b4", 380))
    assert isinstance(source, EncodedSource)
    assert source.describe_preprocessing() == {
        "resize": 384,
        "crop": (380, 380),
        "interpolation": "bicubic",
        "antialias": True,
        "mean": (0.485, 0.456, 0.406),
        "std": (0.229, 0.224, 0.225),
        "train_area": 0.08,
        "train_mirror": True,
    }


def test_a_path_is_for_data_sets_that_have_one(tree):
    with pytest.raises(DataError, match=r"^data\.path is 'a/b'; allowed for data set 'image_folder': null"):
        opened(tree, {"name": "resnet18"}, path="a/b")
