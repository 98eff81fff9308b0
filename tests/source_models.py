"""Tiny models of timm and transformers in folders of their formats, and images for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

CLASSES = ("apple", "banana", "cherry")
MODEL_ORDER = ("cherry", "apple", "banana")
"""The order in which the models number the classes: not that of their names."""
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


def write_images(root: Path, per_class: int = 12, sides: tuple[int, int] = (48, 40)) -> Path:
    """Write images in folders of classes below train/ and val/: noise with a colour of its own for each class."""
    random = np.random.default_rng(0)
    for split in ("train", "val"):
        for number, name in enumerate(CLASSES):
            folder = root / split / name
            folder.mkdir(parents=True)
            for index in range(per_class):
                pixels = random.integers(0, 120, (sides[1], sides[0], 3))
                pixels[..., number] += 100
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{index}.png")
    return root


def new_weights(model: nn.Module, seed: int = 0) -> nn.Module:
    """Give a model weights by which its answers differ between images, the same each time."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if value.dim() > 1:
                value.copy_(torch.randn(value.shape, generator=generator) * (2.0 / value[0].numel()) ** 0.5)
            elif name.endswith("weight"):
                value.fill_(1.0)
            else:
                value.copy_(torch.randn(value.shape, generator=generator) * 0.1)
    return model.eval()


def write_hf_resnet(folder: Path, *, seed: int = 0, **processor: Any) -> nn.Module:
    """Write a ResNet of transformers with its image processor into a folder, and return it."""
    from transformers import ConvNextImageProcessor, ResNetConfig, ResNetForImageClassification

    config = ResNetConfig(
        embedding_size=16,
        hidden_sizes=[16, 32],
        depths=[1, 1],
        layer_type="basic",
        num_labels=3,
        id2label=dict(enumerate(MODEL_ORDER)),
        label2id={name: number for number, name in enumerate(MODEL_ORDER)},
    )
    model = new_weights(ResNetForImageClassification(config), seed)
    model.save_pretrained(folder)
    settings = {"size": {"shortest_edge": 28}, "crop_pct": 0.875, "image_mean": MEAN, "image_std": STD, **processor}
    ConvNextImageProcessor(**settings).save_pretrained(folder)
    return model


def write_hf_vit(folder: Path, **processor: Any) -> nn.Module:
    """Write a vision transformer of transformers with its image processor into a folder, and return it."""
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

    config = ViTConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        image_size=32,
        patch_size=8,
        num_labels=3,
        id2label=dict(enumerate(MODEL_ORDER)),
    )
    model = new_weights(ViTForImageClassification(config))
    model.save_pretrained(folder)
    ViTImageProcessor(
        **{"size": {"height": 32, "width": 32}, "resample": 3, "image_mean": [0.5] * 3, **processor}
    ).save_pretrained(folder)
    return model


def write_timm(folder: Path, **config: Any) -> nn.Module:
    """Write a small ResNet of timm with the configuration of its data into a folder, and return it."""
    import timm

    settings = {"input_size": (3, 32, 32), "mean": MEAN, "std": STD, "crop_pct": 0.9, "interpolation": "bicubic"}
    settings |= {"label_names": list(MODEL_ORDER), **config}
    model = timm.create_model("test_resnet", num_classes=3, pretrained_cfg_overlay=settings)
    new_weights(model)
    timm.models.save_for_hf(model, folder, model_config={"label_names": list(MODEL_ORDER)})
    return model
