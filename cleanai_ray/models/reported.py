"""The accuracy that a model is said to have: by its checkpoint, its model card or torchvision's records."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from cleanai_ray.config.model_names import ModelName
from cleanai_ray.config.sections import ModelSection
from cleanai_ray.models.safe_files import read_checkpoint

_NAMES = (
    "accuracy",
    "acc",
    "acc1",
    "top1",
    "best_acc",
    "best_acc1",
    "best_accuracy",
    "best_prec1",
    "best_top1",
    "val_acc",
    "val_accuracy",
    "test_acc",
    "eval_accuracy",
)
"""Keys under which trainers write an accuracy beside the weights."""
_OF_LIGHTNING = "best_model_score"
_RESULTS = ("all_results.json", "eval_results.json")


@dataclass(frozen=True)
class Reported:
    """An accuracy that a source states.

    Attributes:
        accuracy: In [0, 1].
        where: Where it is stated.
    """

    accuracy: float
    where: str


def reported_accuracy(section: ModelSection) -> Reported | None:
    """Return the accuracy that the source of a model's weights states; None if it states none.

    Args:
        section: The study's `model`.

    Raises:
        ModelError: When a weights file cannot be read.
    """
    if section.weights is None or section.train is not None:  # what is trained further has another accuracy
        return None
    if section.weights != "pretrained":
        path = str(section.weights)
        if path.endswith(".safetensors"):
            return None
        return next((Reported(value, f"{path} ({key})") for key, value in _of_checkpoint(read_checkpoint(path))), None)
    name = ModelName.parse(section.name)
    if name is not None:
        return None if name.folder is None else _of_folder(name.folder)
    return _of_torchvision(str(section.name)) if section.num_classes == 1000 else None


def _of_checkpoint(content: Any) -> Iterator[tuple[str, float]]:
    """Yield the accuracies that a checkpoint states, with their keys."""
    if not isinstance(content, Mapping):
        return
    for key, value in content.items():
        if str(key).lower() in _NAMES and (share := _share(value)) is not None:
            yield str(key), share
    callbacks = content.get("callbacks")
    for key, state in callbacks.items() if isinstance(callbacks, Mapping) else ():
        monitored = str(state.get("monitor") or key) if isinstance(state, Mapping) else ""
        if "acc" in monitored.lower() and (share := _share(state.get(_OF_LIGHTNING))) is not None:
            yield f"{_OF_LIGHTNING} of {monitored[:60]}", share


def _share(value: Any) -> float | None:
    """Return an accuracy as a share; trainers write shares or per cent."""
    try:
        number = float(value)
    except (TypeError, ValueError, RuntimeError):
        return None
    number = number / 100 if number > 1 else number
    return number if 0 < number <= 1 else None


def _of_folder(folder: Path) -> Reported | None:
    """Return what the model card (README.md) or the results of transformers' trainer state."""
    for value in _card_values(folder / "README.md"):
        return Reported(value, f"{folder}/README.md")
    for name in _RESULTS:
        found = _json(folder / name)
        shares = [share for key in _NAMES if (share := _share(found.get(key))) is not None]
        if shares:
            return Reported(shares[0], f"{folder}/{name}")
    return None


def _card_values(card: Path) -> Iterator[float]:
    """Yield the accuracies in the metadata of a model card, which stand between two lines of three hyphens."""
    try:
        parts = card.read_text(encoding="utf-8").split("---\n", 2)
        metadata = yaml.safe_load(parts[1]) if len(parts) == 3 and not parts[0].strip() else None
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return
    for model in _list(metadata, "model-index"):
        for result in _list(model, "results"):
            for metric in _list(result, "metrics"):
                share = _share(metric.get("value"))
                if str(metric.get("type")).lower() == "accuracy" and share is not None:
                    yield share


def _list(content: Any, key: str) -> list[dict[str, Any]]:
    found = content.get(key) if isinstance(content, dict) else None
    return [entry for entry in found if isinstance(entry, dict)] if isinstance(found, list) else []


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _of_torchvision(name: str) -> Reported | None:
    """Return the accuracy of torchvision's default weights on ImageNet."""
    import torchvision  # as slow as torch itself

    try:
        weights = torchvision.models.get_model_weights(name).DEFAULT
        value = weights.meta["_metrics"]["ImageNet-1K"]["acc@1"]
    except (ValueError, KeyError, AttributeError):
        return None
    return Reported(value / 100, f"torchvision's record of {weights}")
