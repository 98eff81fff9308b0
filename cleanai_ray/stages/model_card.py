"""The model card of an exported trial: Markdown with a header in YAML, as Hugging Face's hub reads it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from cleanai_ray import __version__
from cleanai_ray.analysis.chosen import has_test_images, reported_row
from cleanai_ray.analysis.frames import StudyFrames, as_mapping
from cleanai_ray.analysis.image_evidence import against_dense
from cleanai_ray.analysis.intervals import interval_of, speedup_of
from cleanai_ray.analysis.limit_verdict import limit_verdicts
from cleanai_ray.analysis.numbers import NONE, change, milliseconds, percent, plural, quantity, size
from cleanai_ray.analysis.score_words import ScoreWords, dense_text, is_counted, score_number, score_text, words_of
from cleanai_ray.analysis.wording import describe_trial
from cleanai_ray.config.digests import digest
from cleanai_ray.config.model_names import ModelName
from cleanai_ray.config.task import CLASSIFICATION
from cleanai_ray.deploy.standalone_files import CONFIG_FILE, PROGRAM_FILE
from cleanai_ray.pruning.plan import PruningPlan
from cleanai_ray.storage.image_schemas import TEST

UNKNOWN_LICENSE = "unknown"
"""The name that Hugging Face's hub has for a licence that is not known."""

_MOST_NAMES = 100
"""A card lists the classes of a model up to so many."""

_TAGS = ["pytorch", "pruning", "structured-pruning", "model-compression", "cleanai-ray"]

_LOADED_BY_TORCH = """With torch alone; neither CleanAI-Ray nor Ray is needed. In this folder:

```python
import torch
from model import load

model = load()
with torch.no_grad():
    scores = model(images)
```"""

_LOADED_BY_TRANSFORMERS = """With transformers alone; neither CleanAI-Ray nor Ray is needed:

```python
import torch
from transformers import {name}

model = {name}.from_pretrained("this folder")
with torch.no_grad():
    scores = model(inputs).logits
```"""


def model_card(frames: StudyFrames, trial_id: str, plan: PruningPlan, folder: Path, license_name: str) -> str:
    """Return the card of a trial.

    Args:
        frames: The study.
        trial_id: The trial, which succeeded.
        plan: Its plan.
        folder: The folder that the model was exported to, for how it is loaded.
        license_name: The licence of the model, as Hugging Face's hub names it.
    """
    trial = reported_row(frames, trial_id, has_test=has_test_images(frames))
    parts = [
        f"# {_network(frames, plan)}, pruned",
        _summary(frames, trial, plan),
        "## How to load it",
        _loading(frames, folder),
        "## Numbers",
        _numbers(frames, trial),
        *_limits(frames, trial_id),
        "## How it was pruned",
        _pruned(frames, trial, plan),
        "## Licence",
        _licence(frames, license_name),
    ]
    library = "transformers" if (folder / CONFIG_FILE).exists() else "pytorch"
    return _sealed(f"---\n{_header(frames, trial, license_name, library)}---\n\n" + "\n\n".join(parts) + "\n")


def _sealed(text: str) -> str:
    """Return a card with a last line, a comment, that tells whether it was edited."""
    return f"{text}\n<!-- {digest([text])} -->\n"


def is_edited(card: str) -> bool:
    """Return whether a card is not as `model_card` wrote it."""
    text = "\n".join(card.rstrip("\n").split("\n")[:-2]) + "\n"
    return card != _sealed(text)


def _header(frames: StudyFrames, trial: Mapping[str, Any], license_name: str, library: str) -> str:
    header: dict[str, Any] = {"library_name": library, "license": license_name, "tags": _TAGS}
    base = _base_model(as_mapping(frames.study.get("model")))
    header |= {} if base is None else {"base_model": base}
    if not is_counted(trial):
        return yaml.safe_dump(header, sort_keys=False, allow_unicode=True, width=100)
    data = str(as_mapping(frames.study.get("data")).get("name", "unknown"))
    split = str(as_mapping(frames.study.get("evaluation")).get("split", "test"))
    measured = {
        "task": {"type": "image-classification"},
        "dataset": {"name": data, "type": data, "split": split},
        "metrics": [{"type": "accuracy", "name": "Top-1 accuracy", "value": round(float(trial["accuracy"]), 6)}],
    }
    header |= {
        "pipeline_tag": "image-classification",
        "metrics": ["accuracy"],
        "model-index": [{"name": f"{frames.name}/{trial['trial_id']}", "results": [measured]}],
    }
    return yaml.safe_dump(header, sort_keys=False, allow_unicode=True, width=100)


def _base_model(model: Mapping[str, Any]) -> str | None:
    """Return the repository of the hub whose weights a model began with; None where they are from elsewhere."""
    name = ModelName.parse(model.get("name"))
    if name is None or model.get("weights") != "pretrained" or name.folder is not None:
        return None
    if name.source == "hf" or "/" in name.name:
        return name.name.removeprefix("hf-hub:")
    return f"timm/{name.name}" if "." in name.name else None  # without a tag, timm's version chooses the weights


def _network(frames: StudyFrames, plan: PruningPlan) -> str:
    """Return what a network is called: its class, and the name that the study gives it where that says more."""
    found = str(plan.model.get("class", "network"))
    given = as_mapping(frames.study.get("model")).get("name")
    known = ModelName.parse(given)
    says_more = given and (known is None or known.folder is None) and str(given).lower() != found.lower()
    return f"{found} ({given})" if says_more else found


def _summary(frames: StudyFrames, trial: Mapping[str, Any], plan: PruningPlan) -> str:
    interval, images = interval_of(trial), trial.get("num_evaluated")
    words = f"A {_network(frames, plan)} with {percent(trial['params_share'], 0)} of the parameters and "
    words += f"{percent(trial['macs_share'], 0)} of the multiply-accumulates (MACs) of the dense network. "
    if not is_counted(trial):
        where = f" on {plural(images, words_of(trial.get('metric')).sample)}" if images else ""
        beside = "" if trial.get("accuracy_dense") is None else f"; the dense network {dense_text(trial)}"
        return words + f"It reaches {score_text(trial)}{where}{beside}."
    words += "It gets "
    words += f"{percent(trial['accuracy'])} right"
    words += f" (95 % interval {interval})" if interval else ""
    words += f" of {plural(images, 'image')} of `{as_mapping(frames.study.get('data')).get('name')}`" if images else ""
    dense = trial.get("accuracy_dense")
    return words + (f", the dense network {percent(dense)}." if dense is not None else ".")


def _loading(frames: StudyFrames, folder: Path) -> str:
    model = as_mapping(frames.study.get("model"))
    shape, classes = model.get("input_shape", "?"), model.get("num_classes", "?")
    task = as_mapping(frames.study.get("task")).get("name", CLASSIFICATION)
    is_classifier = task in (CLASSIFICATION, "multilabel_classification")
    text, given = _LOADED_BY_TORCH, "images"
    if (folder / CONFIG_FILE).exists():
        text, given = _LOADED_BY_TRANSFORMERS.format(name=_class_of(folder)), "inputs"
    text += f"\n\n`{given}` is a tensor [N, {', '.join(map(str, shape))}] with N of any size"
    text += f"; `scores` is [N, {classes}]." if is_classifier else "."
    if (folder / PROGRAM_FILE).exists():
        text += f" The network is a `torch.export` program, `{PROGRAM_FILE}`."
    names = frames.environment.get("class_names")
    if is_classifier and isinstance(names, list) and 0 < len(names) <= _MOST_NAMES:
        text += f" The classes, in their order: {', '.join(f'`{name}`' for name in names)}."
    preprocessing = as_mapping(frames.environment.get("preprocessing"))
    if preprocessing:
        text += " Images are prepared as in the study:\n\n"
        told = {name: value for name, value in preprocessing.items() if not name.startswith("train_")}
        text += "\n".join(f"- {name}: `{value}`" for name, value in told.items())
    return text


def _class_of(folder: Path) -> str:
    """Return the class that the configuration in a folder of transformers names."""
    return str(json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))["architectures"][0])


def _numbers(frames: StudyFrames, trial: Mapping[str, Any]) -> str:
    interval = interval_of(trial)
    dense = interval_of({**trial, "accuracy": trial.get("accuracy_dense")})
    found = against_dense(frames, trial, TEST if has_test_images(frames) else None)
    words = words_of(trial.get("metric"))
    name = "Top-1 accuracy" if is_counted(trial) else words.compared
    rows = [
        (name, _with(trial.get("accuracy_dense"), dense), _with(trial["accuracy"], interval), NONE),
        *_own_units(trial, words),
        *_costs(trial),
        (
            "Latency, " + (frames.target or "batch 1"),
            milliseconds(trial.get("latency_ms_dense")),
            milliseconds(trial.get("latency_ms")),
            speedup_of(trial),
        ),
    ]
    if found is not None:
        rows[0] = (*rows[0][:3], str(found))
    table = ["| | dense | pruned | difference |", "| --- | --- | --- | --- |"]
    table += ["| " + " | ".join(cells) + " |" for cells in rows if cells[2] != NONE]
    images = trial.get("num_evaluated")
    note = "Intervals are of 95 %: Wilson's for an accuracy, the paired score interval for a difference."
    if not is_counted(trial):
        note = words.explained
    elif images:
        decided = "decided nothing" if has_test_images(frames) else "also decided which trial was chosen"
        note = f"Accuracies are on {plural(images, 'image')} that {decided}. {note}"
    return "\n".join(table) + f"\n\n{note}"


def _limits(frames: StudyFrames, trial_id: str) -> list[str]:
    """Return the verdict on each limit that the study states, under a heading; nothing where it states none."""
    found = limit_verdicts(frames, trial_id)
    lines = [f"- {one.limit[0].upper()}{one.limit[1:]}: **{one.verdict}**; {one.why}." for one in found]
    return ["## Limits of the study", "\n".join(lines)] if lines else []


def _own_units(trial: Mapping[str, Any], words: ScoreWords) -> list[tuple[str, str, str, str]]:
    """Return the score in its own units, where something else is compared."""
    score, dense = trial.get("score"), trial.get("score_dense")
    return [(words.name, score_number(dense), score_number(score), change(score, dense))] if words.is_inverted else []


def _with(value: float | None, interval: Any) -> str:
    return percent(value) + (f" ({interval})" if interval else "")


def _costs(trial: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    kinds = (("Parameters", "params", quantity), ("MACs, batch 1", "macs", quantity), ("Weights", "size_bytes", size))
    return [
        (
            name,
            write(trial.get(f"{key}_dense")),
            write(trial.get(key)),
            change(trial.get(key), trial.get(f"{key}_dense")),
        )
        for name, key, write in kinds
    ]


def _pruned(frames: StudyFrames, trial: dict[str, Any], plan: PruningPlan) -> str:
    epochs, environment = trial.get("epochs_run"), frames.environment
    kept = "; none was better, and the weights before them were kept" if trial.get("best_epoch") == 0 else ""
    commit = environment.get("commit")
    lines = [
        f"- Trial `{trial['trial_id']}` of the study `{frames.name}`: {describe_trial(trial)}.",
        f"- Repair without labels: {trial.get('repair') or 'none'}.",
        f"- Fine-tuning: {plural(epochs, 'epoch') + kept if epochs else 'none'}.",
        f"- Made by CleanAI-Ray {environment.get('version', __version__)}" + (f", commit {commit}." if commit else "."),
    ]
    return "\n".join(lines) + f"\n\n```text\n{plan.explain()}\n```"


def _licence(frames: StudyFrames, license_name: str) -> str:
    if license_name != UNKNOWN_LICENSE:
        return f"`{license_name}`."
    weights = as_mapping(frames.study.get("model")).get("weights")
    name = Path(weights).name if isinstance(weights, str) else ""  # the folder is nobody else's business
    origin = f"the weights that it was made of (`{name}`) and their data" if name else "the data it learned from"
    return f"Not stated. Whoever passes the model on has to state it, as the licence of {origin} allows."
