"""The two halves of the preprocessing, held to torchvision's transforms of PIL images."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from image_trees import colour_image, opened
from PIL import Image
from torchvision import transforms
from torchvision.transforms import InterpolationMode, functional

from cleanai_ray.data.transforms import Preprocessing, decode_image


@pytest.fixture(scope="module")
def images(digit_images) -> list[Image.Image]:
    """A square, a wide and a tall image in colour."""
    squares = [colour_image(digit_images[0][row], 61) for row in range(3)]
    return [squares[0], squares[1].resize((83, 52)), squares[2].resize((47, 90))]


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic"])
def test_pixels_and_their_normalisation_are_torchvisions_transforms(images, interpolation):
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
    steps = Preprocessing(resize=40, crop=(32, 24), interpolation=interpolation, mean=mean, std=std)
    published = transforms.Compose(
        [
            transforms.Resize(40, InterpolationMode(interpolation)),
            transforms.CenterCrop((32, 24)),
            transforms.ToTensor(),
            transforms.Normalize(mean, std),
        ]
    )
    pixels = torch.stack([steps.pixels(image) for image in images])
    assert pixels.dtype == torch.uint8
    assert pixels.shape == (3, 3, 32, 24)
    assert torch.equal(steps.normalise(pixels), torch.stack([published(image) for image in images]))


def test_normalising_a_batch_is_normalising_each_of_its_images(images):
    steps = Preprocessing(resize=32, crop=(32, 32))
    pixels = torch.stack([steps.pixels(image) for image in images])
    before = pixels.clone()
    assert torch.equal(steps.normalise(pixels), torch.stack([steps.normalise(one) for one in pixels]))
    assert torch.equal(pixels, before)


def test_a_decoders_tensor_is_resized_as_a_pil_image_is(images):
    steps = Preprocessing(resize=32, crop=(32, 32))
    for image in images:
        difference = steps.pixels(functional.pil_to_tensor(image)).int() - steps.pixels(image).int()
        assert difference.abs().max() <= 1


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_training_draws_what_torchvision_draws(images, interpolation):
    steps = Preprocessing(resize=40, crop=(32, 24), interpolation=interpolation)
    published = transforms.Compose(
        [
            transforms.RandomResizedCrop((32, 24), interpolation=InterpolationMode(interpolation)),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(steps.mean, steps.std),
        ]
    )
    torch.manual_seed(5)
    expected = [published(image) for image in images for _ in range(3)]
    torch.manual_seed(5)
    drawn = [steps.training_pixels(image) for image in images for _ in range(3)]
    assert torch.equal(steps.normalise(torch.stack(drawn)), torch.stack(expected))
    assert not torch.equal(drawn[0], drawn[1])


@pytest.mark.parametrize("mirrors", [True, False])
def test_training_without_a_random_part_has_the_whole_image(images, mirrors):
    steps = Preprocessing(resize=40, crop=(32, 24), train_area=1, train_mirror=mirrors)
    whole = steps.pixels(images[0])
    drawn = [steps.training_pixels(images[0]) for _ in range(20)]
    allowed = [whole, whole.flip(-1)] if mirrors else [whole]
    assert all(any(torch.equal(one, each) for each in allowed) for one in drawn)
    assert all(any(torch.equal(one, each) for one in drawn) for each in allowed)


def test_a_random_part_has_the_least_area_at_least():
    """Of an image whose columns are numbered by their grey, a part of 81 % of the area is wide."""
    ramp = torch.arange(100, dtype=torch.uint8).expand(3, 100, 100)
    steps = Preprocessing(resize=100, crop=(100, 100), interpolation="nearest", train_area=0.81, train_mirror=False)
    spans = [int(part.max()) - int(part.min()) + 1 for part in (steps.training_pixels(ramp) for _ in range(40))]
    assert (
        min(spans) >= 77
    )  # the narrowest part has 3/4 of the height as its width: sqrt(0.75 * 0.81 * 100 ** 2) = 77.9
    assert min(spans) < 100


@pytest.mark.parametrize("name", ["image_folder", "parquet_images"])
def test_a_study_says_what_is_done_in_training(name, request):
    root = request.getfixturevalue({"image_folder": "imagenet_root", "parquet_images": "parquet_root"}[name])
    changed = opened(
        name,
        root=str(root),
        num_classes=3 if name == "image_folder" else 10,
        transform={"train_area": 1, "train_mirror": False},
    )
    dataset = changed.dataset("test", augment=True)
    assert torch.equal(dataset.pixels(0)[0], changed.dataset("test").pixels(0)[0])


@pytest.mark.parametrize("name", ["image_folder", "parquet_images"])
def test_a_sample_is_its_normalised_pixels(name, request):
    root = request.getfixturevalue({"image_folder": "imagenet_root", "parquet_images": "parquet_root"}[name])
    source = opened(name, root=str(root), num_classes=3 if name == "image_folder" else 10)
    dataset = source.dataset("test")
    indices = np.arange(source.num_samples("test"))
    pixels = [dataset.pixels(index) for index in indices]
    assert all(image.dtype == torch.uint8 and image.shape == (3, 32, 32) for image, _ in pixels)
    for index in indices:
        image, label = dataset[index]
        assert torch.equal(image, dataset.normalise(pixels[index][0]))
        assert label == pixels[index][1]


def test_an_rgb_image_is_decoded_without_a_copy(monkeypatch):
    def copied(self):
        raise AssertionError

    stream = io.BytesIO()
    Image.effect_mandelbrot((24, 16), (-3, -2.5, 2, 2.5), 50).convert("RGB").save(stream, "JPEG")
    expected = np.asarray(Image.open(io.BytesIO(stream.getvalue())).convert("RGB"))
    monkeypatch.setattr(Image.Image, "copy", copied)
    assert np.array_equal(np.asarray(decode_image(stream.getvalue(), "here")), expected)
