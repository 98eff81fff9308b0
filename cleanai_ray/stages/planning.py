"""Checks of a study before it runs, and a preview: its trials, and what is cached already."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import yaml
from torch import nn

from cleanai_ray.analysis.numbers import plural
from cleanai_ray.config.blocks import BlocksSection, in_words
from cleanai_ray.config.sections import HELD_BACK
from cleanai_ray.config.study import Study
from cleanai_ray.deploy import require_quantization
from cleanai_ray.errors import ArtifactError, DataError
from cleanai_ray.evaluation.latency import require_installed
from cleanai_ray.evaluation.target_latency import require_target_packages
from cleanai_ray.graph.blocks import find_blocks
from cleanai_ray.graph.graph import ChannelGraph
from cleanai_ray.importance.base import create_method
from cleanai_ray.models import build_model
from cleanai_ray.pruning.block_removal import chosen_blocks
from cleanai_ray.pruning.measurements import require_budget
from cleanai_ray.stages.completed import completed_records
from cleanai_ray.stages.dense_measures import measures_folder
from cleanai_ray.stages.fingerprints import calibration_key, dense_key
from cleanai_ray.stages.multiple import known_multiple
from cleanai_ray.stages.workspace import Workspace, open_workspace
from cleanai_ray.storage.image_schemas import roles_of_images
from cleanai_ray.storage.run_directory import RunDirectory


@dataclass(frozen=True, kw_only=True)
class PlannedStudy:
    """A study as a table.

    Attributes:
        columns: Headings.
        rows: A row per trial.
        summary: Sentences about the whole.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    summary: tuple[str, ...]


def check_study(study: Study) -> Workspace:
    """Open a study in this process, and check what can be checked without computing.

    Raises:
        CleanAIError: When the data set or a package is missing, the model does not fit its weights or cannot be pruned,
            or an option of a method or of pruning is wrong or does not fit the sweep.
    """
    for trial in study.trials():
        require_budget(create_method(trial.method, trial.options), trial)
    if study.evaluation.latency is not None:
        require_installed(study.evaluation.latency)
    if study.evaluation.target is not None:
        require_target_packages(study.evaluation.target)
    require_quantization(study.sweep.quantization)
    workspace = open_workspace(study.model_dump_json(), "cpu")
    _require_unscored_training(study, workspace)
    section = study.model
    if section.weights == "pretrained":
        section = section.model_copy(update={"weights": None})
    ignored = [*study.pruning.ignored_layers, *workspace.ignored_layers()]
    own = build_model(section, task=workspace.task)
    if not study.task.is_classification:
        _require_scores(workspace, own)
    model = workspace.task.network(own)
    ChannelGraph(model, workspace.example_input(), ignored, check=study.pruning.check)
    blocks = study.pruning.remove_blocks
    if isinstance(blocks, BlocksSection):
        names = blocks.names or ()
        chosen_blocks(find_blocks(model, workspace.example_input()), names, "pruning.remove_blocks.names")
    return workspace


def _require_scores(workspace: Workspace, model: nn.Module) -> None:
    """Run a model on the first evaluation sample, and refuse one whose output does not fit the task."""
    _, inputs, targets = next(iter(workspace.scored_batches(np.arange(1))))
    with torch.no_grad():
        workspace.task.new_scorer().add(workspace.task.predict(model, inputs, targets), targets)


def _require_unscored_training(study: Study, workspace: Workspace) -> None:
    """Refuse to fine-tune on images that are scored; a split may have two names."""
    roles = workspace.roles
    if study.finetune.data == "calibration" and roles.calibration_split == roles.evaluation_split:
        raise DataError(
            f"finetune.data is 'calibration', and data.calibration.split '{study.data.calibration.split}' is the split "
            "that evaluation scores; allowed: finetune.data 'training', or another split"
        )


def missing_inputs(study: Study) -> list[str]:
    """Return what is missing of a study's inputs, a clause for each; elsewhere they may be there."""
    found = []
    root, weights = study.data.root, study.model.weights
    if root is not None and "://" not in root and not Path(root).expanduser().exists():
        found.append(f"data.root '{root}' does not exist")
    if (
        weights not in (None, "pretrained")
        and "://" not in str(weights)
        and not Path(str(weights)).expanduser().exists()
    ):
        found.append(f"model.weights '{weights}' does not exist")
    return found


def describe_plan(study: Study, workspace: Workspace | None, run: RunDirectory) -> PlannedStudy:
    """Return every trial, its resources, and whether the run directory already holds its result.

    Args:
        study: The study.
        workspace: The study, opened here; None if this machine lacks its data or weights.
        run: The run directory.
    """
    study = known_multiple(study, run)
    dense_digest = None if workspace is None else cached_dense(study, run)
    resources = f"{study.resources.cpus_per_trial:g} CPU"
    if study.resources.gpus:
        resources += f" + {study.resources.gpus:g} GPU"
    cached = completed_records(study, run, dense_digest) if dense_digest is not None else {}
    rows = []
    for trial in study.trials():
        amount = f"ratio {trial.ratio:g}" if trial.budget is None else str(trial.budget)
        draw = study.draw_of(trial)
        cell = (trial.trial_id, trial.label, amount, trial.mode, str(trial.steps), str(trial.seed))
        draws = (str(draw.samples), str(draw.seed)) if len(study.draws()) > 1 else ()
        rows.append((*cell, *draws, resources, "cached" if trial.trial_id in cached else "to run"))
    swept = ("calibration samples", "draw") if len(study.draws()) > 1 else ()
    return PlannedStudy(
        columns=("trial", "method", "amount", "mode", "steps", "seed", *swept, "resources", "state"),
        rows=tuple(rows),
        summary=_summary(study, workspace, run, dense_digest, len(cached)),
    )


def cached_dense(study: Study, run: RunDirectory) -> str | None:
    """Return the digest of the dense weights that the run directory holds for this study, or None."""
    if not run.is_complete("cache/dense.json", dense_key(study)):
        return None
    return str(run.read_json("cache/dense.json")["digest"])


def _summary(
    study: Study, workspace: Workspace | None, run: RunDirectory, dense_digest: str | None, cached: int
) -> tuple[str, ...]:
    first = f"{plural(len(study.trials()), 'trial')}, {cached} of them cached, in run directory {run.location}"
    if workspace is None:
        return (first, *(f"{sentence}; a run needs it, and would end here" for sentence in missing_inputs(study)))
    roles = workspace.roles
    calibrated = " or ".join(dict.fromkeys(str(draw.samples) for draw in study.draws()))
    begins = "" if study.model.weights is None else f" from model.weights '{study.model.weights}'"
    dense = "cached" if dense_digest else f"to be trained{begins}" if study.model.train else "to be loaded and scored"
    unlabelled = f"fine-tuning: on calibration samples, without labels; one in {HELD_BACK} is for validation"
    other, blocks = warn_of_another_study(study, run), study.pruning.remove_blocks
    calibration = _calibration(study, run, dense_digest, is_needed=cached < len(study.trials()))
    return (
        first,
        *([other] if other else []),
        f"dense model: {dense}; calibration: {calibration}",
        *([f"residual blocks to remove: {in_words(blocks)}"] if blocks else []),
        f"samples: {', '.join(_samples(workspace, calibrated))}",
        *(_selection(workspace) if len(roles.selection) else ()),
        *([unlabelled] if study.finetune.data == "calibration" else []),
    )


def _samples(workspace: Workspace, calibrated: str) -> Iterator[str]:
    """Yield how many samples have each role that the study makes use of, and how many of the scored ones choose."""
    roles, study = workspace.roles, workspace.study
    withheld = "withheld from" if roles.calibration_withheld else "shared with"
    trains = study.model.train is not None or (study.fine_tunes and study.finetune.data != "calibration")
    yield f"{calibrated} calibration" + (f" ({withheld} training)" if trains else "")
    if trains:
        yield f"{len(roles.training)} training"
        yield f"{len(roles.validation)} validation"
    share, scored = study.evaluation.deciding_share, len(roles.evaluation)
    choose = int(roles_of_images(roles.evaluation, share).sum()) if share else 0
    yield f"{scored} evaluation" + (f" ({choose} choose the trial, {scored - choose} report on it)" if choose else "")


def _selection(workspace: Workspace) -> Iterator[str]:
    """Yield a sentence on the images of another split that choose, and one on what they may be to given weights."""
    roles, model = workspace.roles, workspace.study.model
    kept_out = " and training" if roles.selection_split == roles.training_split else ""
    yield (
        f"the trial is chosen on {len(roles.selection)} images of split {roles.selection_split}, withheld from "
        f"calibration{kept_out}; all evaluation samples are reported on"
    )
    if model.weights is not None and kept_out:
        yield (
            "the weights are given, and may have been trained on the images that choose: optimistic for the choice, "
            "not for what is reported"
        )


def warn_of_another_study(study: Study, run: RunDirectory) -> str:
    """Return a warning if the run directory holds a study of another name, else ""."""
    try:
        held = yaml.safe_load(run.read_text("study.yaml"))
    except (ArtifactError, yaml.YAMLError):  # no study file, or not a readable one
        return ""
    name = held.get("name") if isinstance(held, dict) else None
    if name in (None, study.name):
        return ""
    return (
        f"run directory {run.location} holds the study '{name}', whose tables, report and models will be moved to its "
        "folder history/; --out chooses another directory"
    )


def _calibration(study: Study, run: RunDirectory, dense_digest: str | None, *, is_needed: bool) -> str:
    """Return, for each draw of the calibration samples, whether it is cached and how many shards it has."""
    size, draws = study.data.calibration.shard_size, []
    for draw in study.draws():
        name = f"{measures_folder(study, draw)}/calibration.safetensors"
        is_cached = dense_digest is not None and run.is_complete(
            name, calibration_key(study.of_draw(draw), dense_digest)
        )
        shards = plural(-(-draw.samples // size), "shard")
        if study.pruning.remove_blocks == "auto":
            state = f"once for each choice of blocks, {shards}"
        elif is_cached or is_needed:
            state = f"{'cached' if is_cached else 'to be computed'}, {shards}"
        else:
            state = "not needed, since every trial is cached"
        draws.append(f"{draw.samples} samples of draw {draw.seed}: {state}" if len(study.draws()) > 1 else state)
    return "; ".join(draws)
