"""A YOLO11 with losses and boxes, called as torchvision's detectors are: a detector of one's own."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.ops import batched_nms
from zoo.zoo_networks import Conv, Yolo11

STRIDES = (8, 16)


class YoloDetector(Yolo11):
    """At each place of two maps: the logarithms of the distances to the four sides of a box in strides, and sigmoids.

    A place is responsible for a box whose centre it holds.

    Args:
        num_classes: Classes, the background included.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        widths = (48, 64)
        self.boxes = nn.ModuleList(nn.Sequential(Conv(w, 16, 3), nn.Conv2d(16, 4, 1)) for w in widths)
        self.classes = nn.ModuleList(nn.Sequential(Conv(w, 16, 3), nn.Conv2d(16, num_classes - 1, 1)) for w in widths)
        for layer in self.classes:
            nn.init.constant_(layer[1].bias, -3.0)

    def places(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return class logits [N, classes, places] and distances [N, 4, places], in strides and as logarithms."""
        found = torch.cat([each.flatten(2) for each in super().forward(images)], 2)
        return found[:, 4:], found[:, :4]

    def raw_outputs(self, images: Tensor) -> tuple[Tensor, Tensor]:
        logits, distances = self.places(images)
        return torch.cat([torch.zeros_like(logits[:, :1]), logits], 1), distances

    def forward(self, images: list[Tensor], targets: list[dict[str, Tensor]] | None = None) -> Any:
        stacked = torch.stack(images)
        logits, distances = self.places(stacked)
        centres, strides = grid(stacked.shape[2:])
        sides = distances.transpose(1, 2).clamp(-4, 4).exp() * strides[:, None]
        boxes = torch.cat([centres - sides[..., :2], centres + sides[..., 2:]], 2)
        if self.training:
            assert targets is not None
            return losses(logits.transpose(1, 2), distances.transpose(1, 2), centres, strides, targets)
        return [select(one, scores) for one, scores in zip(boxes, logits.transpose(1, 2).sigmoid(), strict=True)]


def grid(size: Any) -> tuple[Tensor, Tensor]:
    """Return the centres [places, 2] and strides [places] of the places of both maps."""
    centres, strides = [], []
    for stride in STRIDES:
        rows, columns = (torch.arange(length // stride) * stride + stride / 2 for length in size)
        centres.append(torch.cartesian_prod(rows, columns).flip(1))
        strides.append(torch.full((len(centres[-1]),), float(stride)))
    return torch.cat(centres), torch.cat(strides)


def losses(
    logits: Tensor, distances: Tensor, centres: Tensor, strides: Tensor, targets: list[dict[str, Tensor]]
) -> dict[str, Tensor]:
    wanted, terms = torch.zeros_like(logits), []
    for number, target in enumerate(targets):
        for box, label in zip(target["boxes"], target["labels"], strict=True):
            offsets = centres - (box[:2] + box[2:]) / 2
            near = offsets.abs().amax(1) <= strides / 2
            sides = torch.cat([centres - box[:2], box[2:] - centres], 1)[near].clamp_min(1.0) / strides[near, None]
            wanted[number, near, label - 1] = 1.0
            terms.append((distances[number, near] - sides.log()).abs().mean())
    total = torch.stack(terms).mean() if terms else distances.sum() * 0
    weight = wanted.sum().clamp_min(1.0)
    return {
        "classes": functional.binary_cross_entropy_with_logits(logits, wanted, reduction="sum") / weight,
        "boxes": total,
    }


def select(boxes: Tensor, scores: Tensor) -> dict[str, Tensor]:
    best, labels = scores.max(1)
    chosen = best > 0.05
    boxes, best, labels = boxes[chosen], best[chosen], labels[chosen] + 1
    kept = batched_nms(boxes, best, labels, 0.5)[:20]
    return {"boxes": boxes[kept], "scores": best[kept], "labels": labels[kept]}


def build(num_classes: int) -> nn.Module:
    """Return the detector with random weights, a factory of studies."""
    return YoloDetector(num_classes)
