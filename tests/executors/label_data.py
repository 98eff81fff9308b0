"""Images with any number of labels each, and a study of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


def make_labelled(folder: Path) -> None:
    """Colours on noise, any number of three, and a table of their names."""
    generator = np.random.default_rng(0)
    for split, count in (("train", 96), ("val", 40)):
        (folder / split).mkdir(parents=True)
        lines = ["image,labels"]
        for number in range(count):
            image, there = generator.integers(0, 80, (16, 16, 3)).astype(np.uint8), generator.random(3) < 0.5
            image[..., there] += 120
            Image.fromarray(image).save(folder / split / f"{number}.png")
            lines.append(f"{number}.png,{';'.join(np.array(['red', 'green', 'blue'])[there])}")
        (folder / f"{split}.csv").write_text("\n".join(lines) + "\n")


def multilabel(folder: Path) -> dict[str, Any]:
    make_labelled(folder)
    train = {"epochs": 3, "optimizer": "adamw", "learning_rate": 0.01, "batch_size": 16}
    model = {"name": "resnet20", "num_classes": 3, "input_shape": [3, 16, 16]}
    return {
        "task": {"name": "multilabel_classification"},
        "model": {**model, "train": train},
        "data": {"name": "image_labels", "root": str(folder), "batch_size": 16, "transform": {"resize": 16}},
    }
