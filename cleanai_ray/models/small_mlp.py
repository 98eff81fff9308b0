"""A small perceptron for tables: `model.factory: cleanai_ray.models.small_mlp:build`."""

from __future__ import annotations

from itertools import pairwise

from torch import nn


def build(num_classes: int, columns: int, width: int = 64, depth: int = 3) -> nn.Sequential:
    """Return linear layers with ReLU between them, mapping [N, columns] to [N, num_classes].

    Args:
        num_classes: Numbers that are predicted.
        columns: Numbers that they are predicted from.
        width: Width of the hidden layers.
        depth: Number of hidden layers.
    """
    widths = [columns, *[width] * depth]
    layers: list[nn.Module] = []
    for read, written in pairwise(widths):
        layers += [nn.Linear(read, written), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(width, num_classes))
