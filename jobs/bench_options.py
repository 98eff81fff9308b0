"""Command-line options of the benchmarks that start from trained weights: a network, its weights and a data set."""

from __future__ import annotations

import argparse
from typing import Any

import torch


def accuracy_parser(description: str | None, *, weights_required: bool = True) -> argparse.ArgumentParser:
    """Return a parser whose defaults are those of the reference ResNet-20 on Fashion-MNIST."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet20")
    parser.add_argument("--weights", required=weights_required)
    parser.add_argument("--num-classes", type=int, default=10)
    parser.add_argument("--input-shape", type=int, nargs=3, default=(1, 28, 28))
    parser.add_argument("--data", default="fashion_mnist")
    parser.add_argument("--root")
    parser.add_argument("--split", default="test")
    parser.add_argument("--samples", type=int, help="images to score; all by default")
    parser.add_argument("--calibration", type=int, default=2048)
    parser.add_argument("--device", default="cuda:0" if torch.cuda.is_available() else "cpu")
    return parser


def study_sections(options: argparse.Namespace) -> dict[str, Any]:
    """Return the sections `model`, `data` and `evaluation` of a study file."""
    return {
        "model": {
            "name": options.model,
            "weights": options.weights,
            "num_classes": options.num_classes,
            "input_shape": list(options.input_shape),
        },
        "data": {"name": options.data, "root": options.root, "calibration": {"samples": options.calibration}},
        "evaluation": {"split": options.split, "samples": options.samples},
    }
