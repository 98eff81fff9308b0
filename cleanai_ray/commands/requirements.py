"""The packages that features need, as pyproject.toml declares them."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec

NECESSARY = (
    "aiohttp",
    "altair",
    "annotated-types",
    "filelock",
    "jinja2",
    "markupsafe",
    "numpy",
    "pillow",
    "polars",
    "pyarrow",
    "pydantic",
    "pypdf",
    "pyyaml",
    "ray",
    "reportlab",
    "rich",
    "safetensors",
    "scikit-learn",
    "scipy",
    "statsmodels",
    "torch",
    "torch-pruning",
    "torchvision",
    "typer",
    "vl-convert-python",
)
"""The distributions without which something of every study is missing."""


@dataclass(frozen=True)
class Extra:
    """The distributions of an extra, and the features that need them."""

    features: str
    distributions: tuple[str, ...]


EXTRAS = {
    "gpu": Extra("fused sums of calibration on GPUs", ("triton",)),
    "tensorrt": Extra("evaluation.target in TensorRT", ("tensorrt",)),
    "onnx": Extra("export to ONNX, int8, and timing in onnxruntime", ("onnx", "onnxruntime", "onnxscript")),
    "detection": Extra("detection and its mean average precision", ("torchmetrics", "pycocotools")),
    "language": Extra("language models", ("transformers", "tokenizers")),
    "huggingface": Extra("data sets of Hugging Face's hub", ("datasets",)),
    "timm": Extra("models by the name timm:NAME", ("timm",)),
    "transformers": Extra("models by the name hf:NAME", ("transformers",)),
    "tracking": Extra("MLflow, TensorBoard and Weights & Biases", ("mlflow-skinny", "tensorboard", "wandb")),
}
"""The extras: `pip install 'cleanai-ray[NAME]'`."""

_MODULES = {
    "mlflow-skinny": "mlflow",
    "pillow": "PIL",
    "pyyaml": "yaml",
    "scikit-learn": "sklearn",
    "vl-convert-python": "vl_convert",
}


def version_of(distribution: str) -> str | None:
    """Return the version of a distribution whose module can be found; None where it cannot, without importing it."""
    module = _MODULES.get(distribution, distribution.replace("-", "_"))
    try:
        if find_spec(module) is None:
            return None
    except ValueError:  # a module that is loaded without a specification
        return None
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "of unknown version"
