"""Export of a trial's model from a run directory, and the explanation of its plan."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import polars as pl
import yaml
from torch import Tensor

from cleanai_ray.analysis.frames import StudyFrames
from cleanai_ray.analysis.limit_verdict import limit_note
from cleanai_ray.analysis.named_trial import NAMES, named_trial
from cleanai_ray.config.sections import ModelSection
from cleanai_ray.config.study import parse_study
from cleanai_ray.deploy.standalone_files import CARD_FILE, CONFIG_FILE, NEW_CARD_FILE
from cleanai_ray.deploy.transformers_folder import COMPANIONS
from cleanai_ray.errors import ArtifactError
from cleanai_ray.models import build_model, example_input
from cleanai_ray.pruning.plan import PruningPlan
from cleanai_ray.pruning.saved_model import load_model
from cleanai_ray.registry import FORMATS
from cleanai_ray.stages.model_card import UNKNOWN_LICENSE, is_edited, model_card
from cleanai_ray.stages.workspace import open_workspace
from cleanai_ray.storage.run_directory import PLAN_FILE, RunDirectory
from cleanai_ray.storage.schemas import RESULTS_FILE
from cleanai_ray.tasks import find_task


def export_trial(
    run: RunDirectory,
    trial: str,
    format_name: str,
    out: Path | None = None,
    license_name: str = UNKNOWN_LICENSE,
) -> str:
    """Write the pruned model of a trial, and return its location.

    Args:
        run: The run directory.
        trial: As `analysis.named_trial` takes it: an id, `recommended` or `best`.
        format_name: A name of `cleanai list formats`.
        out: The file or folder; by default `exports/<trial><suffix>` of the run directory.
        license_name: The licence that a model card states, as Hugging Face's hub names it. Formats that are folders
            have a card.

    Raises:
        ArtifactError: When the run, the trial or its model is missing, or the exported model's outputs differ.
        DataError: When the format needs calibration samples, and the data set is not where the study file says.
    """
    export = FORMATS.get(format_name)
    trial_id = _saved_trial(run, trial)
    study = yaml.safe_load(run.read_text("study.yaml"))
    section = ModelSection.model_validate(study["model"])
    task = find_task((study.get("task") or {}).get("name", "classification"))
    dense = build_model(section.model_copy(update={"weights": None, "train": None}), task=task)
    model = load_model(dense, run, f"models/{trial_id}").eval()
    suffix = getattr(export, "suffix", f".{format_name}")
    extra = [_calibration_batches(run, trial_id)] if getattr(export, "needs_images", False) else []
    example = example_input(section, batch_size=2, task=task)
    # A folder has a card of what the tables say.
    frames = _tables_with(run, trial_id, format_name) if not suffix else None
    with tempfile.TemporaryDirectory() as folder:
        is_here = out is not None or run.is_local
        target = Path(folder) / f"{trial_id}{suffix}"
        if is_here:
            target = out or run.local_path(f"exports/{trial_id}{suffix}")
            target.parent.mkdir(parents=True, exist_ok=True)
        written = export(model, example, target, *extra)
        if (written / CONFIG_FILE).is_file():
            _add_tokenizer(written, study)
        if frames is not None:
            plan = PruningPlan.from_json(run.read_text(f"models/{trial_id}/{PLAN_FILE}"))
            _write_card(written, model_card(frames, trial_id, plan, written, license_name))
        if is_here:
            return str(written)
        files = sorted(written.iterdir()) if written.is_dir() else [written]
        for file in files:
            run.write_bytes(f"exports/{file.relative_to(folder)}", file.read_bytes())
    return f"{run.location.rstrip('/')}/exports/{trial_id}{suffix}"


def _add_tokenizer(folder: Path, study: Mapping[str, Any]) -> None:
    """Put the tokenizer of a study's texts into a folder of transformers that has none.

    A file whose name transformers does not know is of the package tokenizers if it is JSON, and of no use otherwise.
    """
    given = ((study.get("data") or {}).get("options") or {}).get("tokenizer")
    if not isinstance(given, str) or not (file := Path(given).expanduser()).is_file():
        return
    name = file.name if file.name in COMPANIONS else "tokenizer.json"
    is_known = name == file.name or file.read_bytes().lstrip().startswith(b"{")
    if is_known and not (folder / name).exists():
        shutil.copyfile(file, folder / name)


def _write_card(folder: Path, card: str) -> None:
    """Write a card; one that was edited stays, and the new one is written beside it."""
    place = folder / CARD_FILE
    if place.exists() and is_edited(place.read_text(encoding="utf-8")):
        place = folder / NEW_CARD_FILE
    place.write_text(card, encoding="utf-8")


def _tables_with(run: RunDirectory, trial_id: str, format_name: str) -> StudyFrames:
    """Return the tables of a run, which a card is made of, before anything is written.

    Raises:
        ArtifactError: When they do not hold the trial, or hold numbers of another model than the one that is exported.
    """
    frames = StudyFrames.load(run)
    found = frames.ok.filter(pl.col("trial_id") == trial_id)
    if found.is_empty():
        raise ArtifactError(
            f"results.parquet holds no trial '{trial_id}' that succeeded, so there is no card of it (state_dict "
            "exports a model without one)"
        )
    bits = found["quantization"][0]
    if bits not in (None, "none"):
        raise ArtifactError(
            f"trial '{trial_id}' was measured in {bits}, and a {format_name} folder holds the model in float32; name "
            "the same trial without quantisation, or another format"
        )
    return frames


def _calibration_batches(run: RunDirectory, trial_id: str) -> Iterator[tuple[Tensor, Tensor]]:
    """Return the calibration samples of a trial; the data set must be where the study file says."""
    study = parse_study(yaml.safe_load(run.read_text("study.yaml")))
    draws = [study.draw_of(trial) for trial in study.trials() if trial.trial_id == trial_id]
    draw = (draws or study.draws())[0]
    return open_workspace(study.model_dump_json(), "cpu", draw).batches("calibration")


def explain_trial(run: RunDirectory, trial: str) -> str:
    """Return the plan of a trial as text for people; see `PruningPlan.explain`.

    Args:
        run: The run directory, or a folder that `cleanai_ray.save` wrote to, which holds one plan.
        trial: Trial id, `recommended` or `best`.

    Raises:
        ArtifactError: When the run, the trial or its model is missing, or the plan was edited.
    """
    if trial in NAMES and run.exists(PLAN_FILE):
        return PruningPlan.from_json(run.read_text(PLAN_FILE)).explain()
    trial_id = _saved_trial(run, trial)
    return f"Trial {trial_id}\n{PruningPlan.from_json(run.read_text(f'models/{trial_id}/{PLAN_FILE}')).explain()}"


def missed_limits(run: RunDirectory, trial: str) -> str:
    """Return one line on the limits of the study that a trial misses; "" where it misses none, or tables lack it."""
    if not run.exists(RESULTS_FILE):
        return ""
    frames = StudyFrames.load(run)
    trial_id = named_trial(frames, trial) if trial in NAMES else trial
    return limit_note(frames, trial_id) if trial_id in frames.ok["trial_id"] else ""


def _saved_trial(run: RunDirectory, trial: str) -> str:
    """Return the id of a trial whose model is saved."""
    saved = run.list("models")
    trial_id = named_trial(StudyFrames.load(run), trial) if trial in NAMES else trial
    if trial_id not in saved:
        raise ArtifactError(
            f"run directory '{run.location}' holds no model of trial '{trial_id}'; saved: {', '.join(saved) or 'none'} "
            "(output.save_models: all keeps every model, and runs the trials again whose models are missing)"
        )
    return trial_id
