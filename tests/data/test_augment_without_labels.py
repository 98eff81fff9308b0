"""Transforms for training without labels: shifts, mixtures, and both together with mirroring."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from cleanai_ray.data.augment import random_flip, random_mixture, random_shift, sample_seeds, without_labels


def seeds_of(number: int, seed: int = 0) -> np.ndarray:
    return sample_seeds(seed, range(number))


def shifted_slowly(image: Tensor, down: int, right: int) -> Tensor:
    """The image [C, H, W] whose pixel (y, x) is that at (y + down, x + right), or the nearest one within."""
    _, height, width = image.shape
    moved = torch.empty_like(image)
    for y in range(height):
        for x in range(width):
            moved[:, y, x] = image[:, min(max(y + down, 0), height - 1), min(max(x + right, 0), width - 1)]
    return moved


@pytest.mark.parametrize("reach", [1, 3])
def test_every_image_is_shifted_by_a_way_of_its_own_and_its_border_is_repeated(reach: int) -> None:
    images = torch.randn(200, 2, 5, 7)
    moved = random_shift(images, reach, seeds_of(200))
    ways = [(down, right) for down in range(-reach, reach + 1) for right in range(-reach, reach + 1)]
    found = []
    for image, other in zip(images, moved, strict=True):
        matches = [way for way in ways if torch.equal(shifted_slowly(image, *way), other)]
        assert len(matches) == 1
        found += matches
    # Both directions and every distance are drawn, and about as often.
    for axis in (0, 1):
        counts = np.bincount([way[axis] + reach for way in found], minlength=2 * reach + 1)
        assert stats.chisquare(counts).pvalue > 1e-3


def test_no_reach_is_no_shift() -> None:
    images = torch.randn(4, 1, 3, 3)
    assert torch.equal(random_shift(images, 0, seeds_of(4)), images)


def test_a_mixture_is_convex_and_of_an_image_and_another_of_its_batch() -> None:
    """Of one-hot rows, a mixture shows its weights; every row is the other one of exactly one mixture."""
    number = 300
    mixed = random_mixture(torch.eye(number, dtype=torch.float64), seeds_of(number))
    assert (mixed >= 0).all()
    torch.testing.assert_close(mixed.sum(dim=1), torch.ones(number, dtype=torch.float64))
    assert int((mixed > 0).sum(dim=1).max()) == 2
    others = mixed.clone().fill_diagonal_(0)
    partners = [int(row.argmax()) for row in others if row.any()]
    assert len(set(partners)) == len(partners) > 0.95 * number


def test_the_weights_of_mixtures_have_the_arcsine_law() -> None:
    """Beta(0.5, 0.5): mean 1/2, variance 1/8, and the distribution itself."""
    weights = []
    for seed in range(10):
        mixed = random_mixture(torch.eye(400, dtype=torch.float64), seeds_of(400, seed))
        itself = mixed.diagonal()
        weights.append(itself[itself < 1 - 1e-15].numpy())
    drawn = np.concatenate(weights)
    assert len(drawn) > 3900
    assert stats.kstest(drawn, stats.beta(0.5, 0.5).cdf).pvalue > 1e-3
    assert drawn.mean() == pytest.approx(0.5, abs=4 * np.sqrt(1 / 8 / len(drawn)))
    assert drawn.var() == pytest.approx(1 / 8, rel=0.05)


@pytest.mark.parametrize("kind", [torch.float16, torch.float32, torch.float64])
def test_mixtures_have_the_type_and_shape_of_the_images(kind: torch.dtype) -> None:
    images = torch.rand(6, 3, 4, 5).to(kind)
    mixed = random_mixture(images, seeds_of(6))
    assert (mixed.dtype, mixed.shape) == (kind, images.shape)
    assert float(mixed.min()) >= float(images.min()) * 0.99
    assert float(mixed.max()) <= float(images.max()) * 1.01


def test_one_image_is_mixed_with_itself() -> None:
    image = torch.rand(1, 3, 4, 4)
    torch.testing.assert_close(random_mixture(image, seeds_of(1)), image)


def test_the_same_seeds_give_the_same_images_and_others_give_others() -> None:
    images = torch.rand(20, 3, 8, 8)
    before = images.clone()
    once, again, other = (without_labels(images, seeds_of(20, seed)) for seed in (1, 1, 2))
    assert torch.equal(once, again)
    assert not torch.equal(once, other)
    assert torch.equal(images, before)


def test_images_are_mirrored_shifted_and_mixed_in_this_order() -> None:
    images, seeds = torch.rand(20, 3, 8, 8), seeds_of(20)
    expected = random_mixture(random_shift(random_flip(images, seeds), 2, seeds), seeds)
    assert torch.equal(without_labels(images, seeds), expected)
    expected = random_mixture(random_shift(images, 1, seeds), seeds)
    assert torch.equal(without_labels(images, seeds, mirror=False, shift=1), expected)


@pytest.mark.parametrize(
    "values", [torch.randint(9, (6, 5)), torch.randint(9, (6, 3, 4, 4), dtype=torch.uint8), torch.randn(6, 5, 8)]
)
def test_other_inputs_than_images_come_back_as_they_are(values: Tensor) -> None:
    assert without_labels(values, seeds_of(6)) is values
