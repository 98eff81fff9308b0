"""Random training transforms of a whole batch at once; but for mixtures, those of a sample depend on its seed alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from cleanai_ray.nn.splitmix64 import splitmix64

Indices = Sequence[int] | np.ndarray | Tensor

_64_BITS = 0xFFFF_FFFF_FFFF_FFFF


def sample_seeds(seed: int, indices: Indices) -> np.ndarray:
    """Return a seed for the random transforms of each sample.

    Args:
        seed: Seed of the epoch; any integer, of which the lowest 64 bits are used.
        indices: Indices of the samples [N].

    Returns:
        uint64 [N]: the same for a sample whatever else is in its batch, and whichever process reads it.
    """
    return splitmix64(splitmix64(seed & _64_BITS) ^ np.asarray(indices, dtype=np.int64).astype(np.uint64))


def _draw(seeds: np.ndarray, number: int, below: int) -> Tensor:
    """Return the `number`-th draw of each seed, an integer from 0 to `below` - 1, int64 [N]."""
    bits = splitmix64(seeds, number) >> np.uint64(32)
    return torch.from_numpy(((bits * np.uint64(below)) >> np.uint64(32)).astype(np.int64))


def random_crop(images: Tensor, padding: int, seeds: np.ndarray) -> Tensor:
    """Pad images [N, C, H, W] with zeros and cut each at its own random place to its old size.

    The content moves by at most `padding` pixels in each direction.

    Args:
        images: The images.
        padding: In pixels.
        seeds: One an image, uint64 [N].
    """
    count, channels, height, width = images.shape
    padded = functional.pad(images, [padding] * 4)
    top, left = (_draw(seeds, number, 2 * padding + 1).view(count, 1) for number in (0, 1))
    rows = (top + torch.arange(height)).view(count, 1, height, 1)
    columns = (left + torch.arange(width)).view(count, 1, 1, width)
    return padded[torch.arange(count).view(-1, 1, 1, 1), torch.arange(channels).view(1, -1, 1, 1), rows, columns]


def random_flip(images: Tensor, seeds: np.ndarray) -> Tensor:
    """Mirror each of the images [N, C, H, W] left to right with probability one half; `seeds` has one an image."""
    chosen = _draw(seeds, 2, 2) == 1
    return torch.where(chosen.view(-1, 1, 1, 1), images.flip(-1), images)


def random_shift(images: Tensor, reach: int, seeds: np.ndarray) -> Tensor:
    """Shift each of the images [N, C, H, W] by up to `reach` pixels each way; its border is repeated into the gap."""
    count, channels, height, width = images.shape
    top, left = (_draw(seeds, number, 2 * reach + 1).view(count, 1) - reach for number in (0, 1))
    rows = (top + torch.arange(height)).clamp(0, height - 1).view(count, 1, height, 1)
    columns = (left + torch.arange(width)).clamp(0, width - 1).view(count, 1, 1, width)
    return images[torch.arange(count).view(-1, 1, 1, 1), torch.arange(channels).view(1, -1, 1, 1), rows, columns]


def random_mixture(images: Tensor, seeds: np.ndarray) -> Tensor:
    """Mix each image [N, ...] with one of its batch: w a + (1 - w) b, with w drawn from Beta(0.5, 0.5).

    Beta(0.5, 0.5) is the arcsine law, sin^2(pi u / 2) for uniform u. Mixtures have no label; a dense model says what
    they are (mixup without its labels: Zhang et al. 2018).
    """
    uniform = (_draw(seeds, 3, 1 << 24).double() + 0.5) / (1 << 24)
    weights = torch.sin(uniform * (torch.pi / 2)).square().to(images).view(-1, *[1] * (images.ndim - 1))
    partners = torch.from_numpy(np.argsort(splitmix64(seeds, 4), kind="stable"))
    return weights * images + (1 - weights) * images[partners]


def without_labels(images: Tensor, seeds: np.ndarray, *, mirror: bool = True, shift: int = 2) -> Tensor:
    """Return images to learn from a dense model: mirrored, shifted and mixed at random.

    Args:
        images: Images [N, C, H, W] on the CPU; other inputs (tokens) come back as they are.
        seeds: One an image, uint64 [N].
        mirror: Mirror half of them left to right.
        shift: Greatest shift, in pixels.
    """
    if images.ndim != 4 or not images.is_floating_point():
        return images
    if mirror:
        images = random_flip(images, seeds)
    return random_mixture(random_shift(images, shift, seeds), seeds)
