"""Digests of everything that an output depends on: an output is not reused once an input has changed."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from pyarrow.fs import FileType

from cleanai_ray.config.digests import digest
from cleanai_ray.config.model_names import ModelName
from cleanai_ray.config.sections import LEAST_STEPS
from cleanai_ray.config.start_of_training import start_judged_by_deciding_images
from cleanai_ray.config.study import Study, Trial
from cleanai_ray.config.sweep import Budget
from cleanai_ray.errors import ModelError
from cleanai_ray.registry import named_callable
from cleanai_ray.storage.run_directory import resolve_filesystem
from cleanai_ray.storage.split_folders import held_out_rule

_CHUNK_BYTES = 2**22
_STATISTICS = "statistics/2"
"""The version of the statistics: since the second, those of attention are of its separate layers."""
_PROFILE = "profile/3"
_PRICES = "block-prices/2"
_BLOCK_TIMES = "block-times/2"
"""The version of the times of blocks: since the second, the dense model beside them has its attention opened too."""
_MOMENTS = "moments/3"  # Moments of an earlier format are measured anew.
_JUDGED = "judged/boxes"  # Detectors are compared by boxes, too.
_LAYERS = "layers/opened"  # Layers that compute a linear map in another form are plain ones.


def data_key(study: Study) -> str:
    """Return the digest of everything that decides which samples are read."""
    evaluation = study.evaluation
    drawn = [] if evaluation.samples is None or evaluation.sampling == "first" else [evaluation.sampling]
    return digest([_model_shape(study), _data(study), evaluation.split, evaluation.samples, *drawn, *_selection(study)])


def dense_key(study: Study) -> str:
    """Return the digest of everything that the dense model and its score depend on: of a weights file, the content."""
    evaluation = _evaluation(study)
    del evaluation["latency"]
    evaluation.pop("target", None)
    return digest([*_of_weights(study), evaluation, *_numerics(study), *_own_functions(study, "loss", "metric")])


def dense_weights_key(study: Study) -> str:
    """Return the digest of everything that the dense weights depend on; how they are scored is not among it."""
    own = [*_own_functions(study, "loss", "metric"), *_selection(study)] if study.model.train is not None else []
    return digest(["weights", *_of_weights(study), *_numerics(study), *own])


def _of_weights(study: Study) -> list[Any]:
    """Return the sections that the dense weights depend on, and the digest of a weights file's content."""
    weights = study.model.weights
    content = None if weights in (None, "pretrained") else _content_digest(str(weights))
    if (name := ModelName.parse(study.model.name)) is not None and name.folder is not None:
        # The architecture and the order of the classes are in files of the folder, whatever the weights are.
        files = sorted(name.folder.rglob("*" if weights == "pretrained" else "*.json"))
        held = {str(path.relative_to(name.folder)): _content_digest(str(path)) for path in files if path.is_file()}
        content = digest([content, held])
    model = _model(study, {"expected_accuracy"})
    if study.model.train is not None:
        for setting, first in (("optimizer", "sgd"), ("precision", "auto")):
            if model["train"][setting] == first:
                del model["train"][setting]  # as before there was a choice, so that trained models stay valid
    return [model, content, _data(study)]


def _numerics(study: Study) -> list[Any]:
    """Return the numerical settings that are not torch's own; none for most studies, so that their digests stay."""
    return [study.numerics.changed] if study.numerics.changed else []


def calibration_key(study: Study, dense_digest: str) -> str:
    """Return the digest of everything that the calibration of a study of one draw depends on."""
    from cleanai_ray.stages.calibration import CalibrationNeeds  # loads torch, which the writer's process does without

    needs = asdict(CalibrationNeeds.of(study))
    read = [_model_shape(study), _data(study), study.evaluation.split, *_selection(study)]
    computed = [*_numerics(study), *_precision(study), *_blocks(study), *_own_functions(study, "loss")]
    return digest([_STATISTICS, dense_digest, *read, needs, *computed, *_later(study)])


def moments_key(study: Study, dense_digest: str) -> str:
    """Return the digest of everything that second moments and curves of a study of one draw depend on."""
    read = [_model_shape(study), _data(study), study.evaluation.split, *_selection(study)]
    computed = [study.pruning.ignored_layers, *_numerics(study), *_precision(study)]
    return digest([_MOMENTS, dense_digest, *read, *computed, *_blocks(study), *_later(study)])


def blocks_key(study: Study, dense_digest: str) -> str:
    """Return the digest of everything that the prices of blocks of a study of one draw depend on, and their choice."""
    read = [_model_shape(study), _data(study), study.evaluation.split, *_selection(study)]
    is_timed = any(budget.resource == "latency" for budget in study.sweep.budgets)
    timed = [_BLOCK_TIMES, profile_key(study)] if is_timed else []
    return digest([_PRICES, dense_digest, *read, *_numerics(study), *_blocks(study), *timed, *_later(study)])


def block_choice_key(study: Study, dense_digest: str, budget: Budget) -> str:
    """Return the digest of everything that the choice of a budget's blocks depends on, for a study of one draw."""
    prices, trial = blocks_key(study, dense_digest), study.choosing_trial(budget)
    computed = [*_precision(study), *_own_functions(study, "loss")]
    return digest([prices, trial.identity, bounds_key(study, trial.quantization), *computed])


def _blocks(study: Study) -> list[Any]:
    """Return the blocks that the study removes before it measures; nothing where it removes none."""
    section = study.pruning.remove_blocks
    if section is None:
        return []
    # The cheapest after repair are other blocks than the cheapest before.
    repaired = [study.repair.compensation != "none", study.repair.batch_norm != "none"]
    named = "auto" if section == "auto" else section.model_dump(mode="json")
    return [{"blocks": named, "priced_after": repaired}]


def _later(study: Study) -> list[str]:
    """Return what is measured otherwise than it once was, where it may matter; nothing for most studies."""
    return [*([_JUDGED] if study.task.name == "detection" else []), *_opened(study)]


def _opened(study: Study) -> list[str]:
    """Return a term for models of other libraries and of one's own, which may have layers that are opened."""
    return [_LAYERS] if study.model.factory is not None or ModelName.parse(study.model.name) is not None else []


def profile_key(study: Study) -> str:
    """Return the digest of everything that a latency profile depends on: the architecture, the target, how it is timed.

    Weights are not among it, nor is the machine: a run directory belongs to one cluster.
    """
    latency = study.evaluation.latency
    timed = None if latency is None else [latency.warmup, latency.runs]
    target = study.evaluation.timed_target.model_dump()
    bounds = [study.pruning.ignored_layers, study.pruning.round_to]
    return digest([_PROFILE, _model_shape(study), target, timed, bounds, *_opened(study)])


def alone_key(study: Study, trial: Trial, dense_digest: str, record: Mapping[str, Any]) -> str:
    """Return the digest of everything that the timing of a trial after the sweep depends on.

    A trial that meets a budget of time may have other widths when it is run again, so what its record says counts.
    """
    latency, target = study.evaluation.latency, study.evaluation.target
    timed = [part and part.model_dump(mode="json") for part in (latency, target)]
    removed = record["removed"], record.get("blocks")
    return digest(["alone/2", trial_key(study, trial, dense_digest), timed, removed])


def trial_key(study: Study, trial: Trial, dense_digest: str) -> str:
    """Return the digest of everything that a trial's outcome depends on."""
    parts: dict[str, Any] = {
        "repair": study.repair.model_dump(),
        "evaluation": _evaluation(study),
        "finetune": _finetune(study),
    }
    if study.evaluation.target is not None and (trial.budget is None or trial.budget.resource != "latency"):
        # Models are timed after the sweep: how, and in which target, is not the trial's.
        parts["evaluation"] |= {"target": True, "latency": None}
    if trial.budget is not None and trial.budget.resource == "latency":
        parts["profile"] = profile_key(study)
    parts["pruning"] = bounds_key(study, trial.quantization)
    if study.pruning.remove_blocks == "auto" and trial.budget in study.sweep.budgets:
        assert trial.budget is not None
        parts["blocks_chosen_by"] = study.choosing_trial(trial.budget).identity
    own, between_steps = study.of_draw(study.draw_of(trial)), study.finetune.between_steps
    if trial.steps == 1 or not between_steps:
        del parts["finetune"]["between_steps"]
    if len(study.draws()) > 1 and (study.finetune.epochs or between_steps):
        # Training leaves out the images of all draws, so it depends on all of them.
        parts["withheld"] = [[draw.samples, draw.seed] for draw in study.draws()]
    is_tuned = study.finetune.epochs > 0 or (trial.steps > 1 and between_steps > 0)
    if is_tuned and not trial.trains_anew and start_judged_by_deciding_images(study):
        parts["start judged by"] = study.evaluation.deciding_share
    from cleanai_ray.stages.pipeline import plan_stages  # loads torch, which the process that writes files does without

    if plugins := [step.key for step in plan_stages(study, trial) if step.is_plugin]:
        parts["stages"] = plugins
    computed = [*_numerics(study), *_precision(study), *_own_functions(study, "loss", "metric")]
    return digest([trial.identity, dense_digest, _model_shape(study), _data(own), parts, *computed])


def bounds_key(study: Study, quantization: str) -> dict[str, Any]:
    """Return the bounds of trials that end in a quantisation, with the multiple that widths are rounded to."""
    bounds = study.pruning.resolved(quantization, study.multiple).described()
    return bounds | ({"least_steps": LEAST_STEPS} if study.pruning.round_to == "auto" else {})


def _finetune(study: Study) -> dict[str, Any]:
    """Return the fine-tuning section without keys that change no weights, and keys that say what once went unsaid."""
    unsaid = {"data": "training", "precision": "auto", "compile": False}
    left_out = {name for name, value in unsaid.items() if getattr(study.finetune, name) == value}
    return study.finetune.model_dump(exclude={"checkpoint_minutes", *left_out})


def _model_shape(study: Study) -> dict[str, Any]:
    """Return the model section without weights and training; its input shape decides how images are resized."""
    return _model(study, {"weights", "weights_key", "train", "expected_accuracy"})


def _model(study: Study, left_out: set[str]) -> dict[str, Any]:
    """Return the model section without some keys, and without those that once were not there and say nothing."""
    silent = {name for name in ("weights_key", "output") if getattr(study.model, name) is None}
    return study.model.model_dump(exclude=left_out | silent)


def _evaluation(study: Study) -> dict[str, Any]:
    """Return the evaluation section without the values that once went unsaid, so that earlier results stay valid."""
    unsaid = {"precision": "float32", "target": None, "sampling": "first", "validation": None}
    left_out = {name for name, value in unsaid.items() if getattr(study.evaluation, name) == value}
    if study.evaluation.samples is None:
        left_out.add("sampling")  # it decides nothing
    if study.task.is_classification:
        left_out.add("validation_share")  # every image is scored, whatever it decides
    found = study.evaluation.model_dump(exclude=left_out)
    section = study.evaluation.validation
    if section is not None and section.samples is None and section.split != "train":
        found["validation"]["samples"] = "of the whole split"  # once at most a tenth of it
    return found


def _selection(study: Study) -> list[Any]:
    """Return what decides which samples of another split choose, which are not calibrated or trained on."""
    section, evaluation = study.evaluation.validation, study.evaluation
    if section is None:
        return []
    # Where their number is not given, it follows that of the samples that are reported on.
    return [section.model_dump(), None if section.samples is not None else [evaluation.split, evaluation.samples]]


def _data(study: Study) -> dict[str, Any]:
    """Return the data section without the keys that change no sample, such as the number of decoding processes.

    With pretrained weights and models of another library, their preprocessing counts, since it is what images go
    through by default.
    """
    unrelated: dict[str, Any] = {
        "num_workers": True,
        "skip_unreadable": True,
        "cache": True,
        "calibration": {"precision"},
        "options": {"index_cache", "cache_dir"},
    }
    data = study.data.model_dump(exclude=unrelated)
    # Without what is null, as before there was a choice, so that what was measured stays valid.
    given = {name: value for name, value in (data.pop("transform") or {}).items() if value is not None}
    data |= {"transform": given} if given else {}
    for name, unsaid in (("path", None), ("decoder", "auto")):
        if data[name] == unsaid:
            del data[name]
    if study.data.name == "image_folder" and (rule := held_out_rule(study.data.root)) is not None:
        data["held_out"] = rule
    if not data["calibration"]["disjoint"]:
        del data["calibration"]["disjoint"]
    if study.model.weights == "pretrained" or ModelName.parse(study.model.name) is not None:
        from cleanai_ray.models import published_transform  # loads torch

        published = published_transform(study.model)
        data["published_transform"] = None if published is None else published.model_dump()
    return data


def _precision(study: Study) -> list[str]:
    """Return the precision of the calibration; nothing for the default, so that what was measured before counts."""
    precision = study.data.calibration.precision
    return [] if precision == "float32" else [precision]


def _own_functions(study: Study, *keys: str) -> list[Any]:
    """Return the functions of the user's own that the task names, and the digests of their files; none for most."""
    found = []
    for key in keys:
        name = getattr(study.task, key)
        if name is not None:
            named_callable(name, f"task.{key}")
            file = getattr(sys.modules[name.partition(":")[0]], "__file__", None)
            found.append([key, name, None if file is None else _content_digest(file)])
    return found


def _content_digest(location: str) -> str | None:
    """Return the digest of a file's content, read in chunks; None if there is no such file."""
    filesystem, path = resolve_filesystem(location)
    hasher = hashlib.sha256()
    try:
        if filesystem.get_file_info(path).type != FileType.File:
            return None
        with filesystem.open_input_stream(path, compression=None) as stream:
            while chunk := stream.read(_CHUNK_BYTES):
                hasher.update(chunk)
    except OSError as error:
        raise ModelError(f"model.weights '{location}' cannot be read: {' '.join(str(error).split())}") from error
    return hasher.hexdigest()
