"""Repair on an architecture that nothing was tuned on, with few calibration images that are unlike those scored."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models import MobileNetV2

import cleanai_ray
from cleanai_ray.config.study import parse_study
from cleanai_ray.data import open_image_source
from cleanai_ray.repair import RepairOptions, repair
from cleanai_ray.repair.outputs import divergences, log_probabilities


def mobilenet() -> nn.Module:
    """Half of a MobileNet-V2's width, with fewer strides, for one channel of 28 pixels."""
    setting = [[1, 16, 1, 2], [6, 24, 2, 1], [6, 32, 2, 2], [6, 64, 2, 1]]
    model = MobileNetV2(num_classes=10, width_mult=0.5, inverted_residual_setting=setting, dropout=0.0)
    stem = model.features[0][0]
    model.features[0][0] = nn.Conv2d(1, stem.out_channels, 3, padding=1, bias=False)
    return model


def train(model: nn.Module, images: Tensor, labels: Tensor) -> None:
    """Two epochs, which are enough for outputs that mean something."""
    size, epochs = 64, 2
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, nesterov=True, weight_decay=5e-4)
    steps = epochs * (len(images) // size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=steps + 1)
    for epoch in range(epochs):
        for chosen in torch.from_numpy(np.random.default_rng(epoch).permutation(len(images))).split(size)[:-1]:
            optimizer.zero_grad()
            functional.cross_entropy(model(images[chosen]), labels[chosen]).backward()
            optimizer.step()
            schedule.step()
    model.eval()


@pytest.mark.slow
def test_auto_does_not_lose_to_closed_form_on_a_mobilenet_with_few_unlike_images(fashion_mnist_root: Path) -> None:
    """386 calibration images of half the classes; the distance to the dense model is measured on all ten.

    `auto` chooses on 77 images and is measured on 2,000 others, image by image against closed form: with the standard
    deviation s of the difference of their distances, chance moves its mean by s sqrt(1/77 + 1/2000).
    """
    study = parse_study(
        {
            "model": {"name": "resnet20", "input_shape": [1, 28, 28], "train": {"epochs": 1}},
            "data": {"name": "fashion_mnist", "root": str(fashion_mnist_root)},
            "sweep": {"methods": ["magnitude"], "ratios": [0.3]},
        }
    )
    source = open_image_source(study.data, study.model)
    images, labels = source.dataset("train").batch(np.arange(10_000), 0)
    torch.manual_seed(0)
    dense = mobilenet()
    train(dense, images[:4000], labels[:4000])
    calibration = images[8000:][labels[8000:] < 5][:386]
    others, _ = source.dataset("test").batch(np.arange(2000), 0)
    result = cleanai_ray.prune(dense, images[:1], [calibration], method="reconstruction", budget={"macs": 0.8})
    reference = log_probabilities(dense, [others])

    def distances(options: RepairOptions) -> Tensor:
        return divergences(reference, log_probabilities(repair(dense, result, [calibration], options).model, [others]))

    auto = distances(RepairOptions())
    unrepaired = divergences(reference, log_probabilities(result.model, [others]))
    assert auto.mean() < unrepaired.mean()
    num_held = len(calibration) // 5
    assert num_held == 77
    for batch_norm in ("none", "relative"):
        excess = auto - distances(RepairOptions(compensation="closed_form", batch_norm=batch_norm))
        chance = float(excess.std()) * math.sqrt(1 / num_held + 1 / len(others))
        assert float(excess.mean()) <= 3 * chance
