"""Handwritten digits pasted on canvases, with the mask and the box of each; and texts, as tokens."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

CLASSES = 3
"""The background, zeros and ones."""


def canvases(number: int, *, size: int = 64, zoom: int = 4, seed: int = 0) -> tuple[Tensor, Tensor, list[Any]]:
    """Images [N, 3, size, size] with one real digit each, masks [N, size, size], and boxes with labels."""
    digits = load_digits()
    chosen = np.flatnonzero(digits.target < CLASSES - 1)
    generator = np.random.default_rng(seed)
    images = np.zeros((number, size, size), dtype=np.float32)
    masks = np.zeros((number, size, size), dtype=np.int64)
    boxes = []
    for position, index in enumerate(generator.permutation(chosen)[:number]):
        digit = np.kron(digits.images[index] / 16.0, np.ones((zoom, zoom)))
        label = int(digits.target[index]) + 1
        top, left = generator.integers(0, size - len(digit) + 1, 2)
        place = slice(top, top + len(digit)), slice(left, left + len(digit))
        images[position][place] = digit
        masks[position][place] = np.where(digit > 0, label, 0)
        rows, columns = np.nonzero(masks[position])
        box = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        boxes.append({"boxes": torch.tensor([box], dtype=torch.float32), "labels": torch.tensor([label])})
    stacked = torch.from_numpy(images)[:, None].repeat(1, 3, 1, 1)
    return stacked, torch.from_numpy(masks), boxes


def batched(images: Tensor, targets: Any, size: int) -> list[tuple[Tensor, Any]]:
    """Batches (images, targets) of a size."""
    return [(images[i : i + size], targets[i : i + size]) for i in range(0, len(images), size)]


def follow_batches(model: nn.Module) -> nn.Module:
    """Let running statistics follow a training of few steps: torchvision's networks average over hundreds."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.3
    return model
