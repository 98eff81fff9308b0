"""Digests of everything that an output depends on: an output is not reused once an input has changed."""

from __future__ import annotations

import hashlib
from dataclasses import asdict
from typing import Any

from pyarrow.fs import FileType

from cleanai_ray.config.study import Study, Trial, digest
from cleanai_ray.errors import ModelError
from cleanai_ray.storage.run_directory import resolve_filesystem

_CHUNK_BYTES = 2**22
_STATISTICS = "statistics/2"
"""The version of the statistics: since the second, those of attention are of its separate layers."""
_MOMENTS = "moments/3"  # Moments of an earlier format are measured anew.


def data_key(study: Study) -> str:
    """Return the digest of everything that decides which samples are read."""
    return digest([_model_shape(study), _data(study), study.evaluation.split, study.evaluation.samples])


def dense_key(study: Study) -> str:
    """Return the digest of everything that the dense model and its score depend on: of a weights file, the content."""
    weights = study.model.weights
    content = None if weights in (None, "pretrained") else _content_digest(str(weights))
    evaluation = study.evaluation.model_dump(exclude={"latency"})
    model = study.model.model_dump()
    if study.model.train is not None and study.model.train.optimizer == "sgd":
        del model["train"]["optimizer"]  # as before there was a choice, so that trained models stay valid
    return digest([model, content, _data(study), evaluation])


def calibration_key(study: Study, dense_digest: str) -> str:
    """Return the digest of everything that the calibration of a study of one draw depends on."""
    from cleanai_ray.stages.calibration import CalibrationNeeds  # loads torch, which the writer's process does without

    needs = asdict(CalibrationNeeds.of(study))
    measured = [dense_digest, _model_shape(study), _data(study), study.evaluation.split, needs]
    return digest([_STATISTICS, *measured, *_precision(study)])


def moments_key(study: Study, dense_digest: str) -> str:
    """Return the digest of everything that second moments and curves of a study of one draw depend on."""
    kept_wide = study.pruning.ignored_layers
    measured = [dense_digest, _model_shape(study), _data(study), study.evaluation.split, kept_wide]
    return digest([_MOMENTS, *measured, *_precision(study)])


def trial_key(study: Study, trial: Trial, dense_digest: str) -> str:
    """Return the digest of everything that a trial's outcome depends on."""
    sections = ("repair", "finetune", "evaluation")
    parts = {name: getattr(study, name).model_dump() for name in sections}
    parts["pruning"] = study.pruning.resolved(trial.quantization).model_dump()
    own, between_steps = study.of_draw(study.draw_of(trial)), study.finetune.between_steps
    if trial.steps == 1 or not between_steps:
        del parts["finetune"]["between_steps"]
    if study.finetune.data == "training":
        del parts["finetune"]["data"]
    if len(study.draws()) > 1 and (study.finetune.epochs or between_steps):
        # Training leaves out the images of all draws, so it depends on all of them.
        parts["withheld"] = [[draw.samples, draw.seed] for draw in study.draws()]
    from cleanai_ray.stages.pipeline import plan_stages  # loads torch, which the process that writes files does without

    if plugins := [step.key for step in plan_stages(study, trial) if step.is_plugin]:
        parts["stages"] = plugins
    return digest([trial.identity, dense_digest, _model_shape(study), _data(own), parts, *_precision(study)])


def _model_shape(study: Study) -> dict[str, Any]:
    """Return the model section without weights and training; its input shape decides how images are resized."""
    return study.model.model_dump(exclude={"weights", "train"})


def _data(study: Study) -> dict[str, Any]:
    """Return the data section without the keys that change no sample, such as the number of decoding processes."""
    unread: Any = {"options": {"index_cache"}, "calibration": {"precision"}}
    return study.data.model_dump(exclude={"num_workers": True, "skip_unreadable": True, **unread})


def _precision(study: Study) -> list[str]:
    """Return the precision of the calibration; nothing for the default, so that what was measured before counts."""
    precision = study.data.calibration.precision
    return [] if precision == "float32" else [precision]


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
