"""What the source of a model says of it: its classes, its inputs, and how images are prepared for it."""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from cleanai_ray.config.images import TransformSection
from cleanai_ray.config.model_names import ModelName
from cleanai_ray.errors import ModelError

_READERS = {"timm": "timm_facts", "hf": "huggingface_facts"}
_PACKAGES = {"timm": ("timm", "timm"), "hf": ("transformers", "transformers")}
"""The package of each source, and the extra of this distribution that installs it."""


@dataclass(frozen=True, kw_only=True)
class SourceFacts:
    """What a source says of a model.

    Attributes:
        num_classes: Outputs of its classifier.
        input_shape: Channels, height and width of its inputs.
        transform: All of its preprocessing, for inputs of that shape.
        has_weights: Whether the source has trained weights of it.
        class_names: Names of its classes in their order; empty if it has none.
        notes: Sentences on what this system does in another way.
    """

    num_classes: int
    input_shape: tuple[int, int, int]
    transform: TransformSection
    has_weights: bool = True
    class_names: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def facts_of(name: ModelName, options: Mapping[str, Any] | None = None) -> SourceFacts:
    """Return what a source says of a model; it is asked once in a process.

    Args:
        name: The model.
        options: `model.options` of the study.

    Raises:
        ModelError: When its package is not installed, or does not know the model.
    """
    return _facts(name, json.dumps(dict(options or {}), sort_keys=True, default=str))


@lru_cache(maxsize=64)
def _facts(name: ModelName, options: str) -> SourceFacts:
    require_package(name)
    if name.folder is not None and not name.folder.is_dir():
        raise ModelError(f"model.name is '{name}', and there is no folder '{name.folder}'")
    reader = importlib.import_module(f"cleanai_ray.config.{_READERS[name.source]}")
    found: SourceFacts = reader.read_facts(name, json.loads(options))
    return found


def require_package(name: ModelName) -> Any:
    """Return the package that a model comes from.

    Raises:
        ModelError: When it is not installed; the message says how to install it.
    """
    package, extra = _PACKAGES[name.source]
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise ModelError(
            f"model.name is '{name}', which needs the package {package}: pip install 'cleanai-ray[{extra}]'"
        ) from error


def said_in_a_line(error: BaseException) -> str:
    """Return the first line of an exception's message, at most 200 characters, without its full stop."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return " ".join(lines[0].split())[:200].rstrip(".")
