"""Digests of everything that an output depends on: changed inputs never reuse old outputs."""

from __future__ import annotations

import hashlib
from pathlib import Path

from cleanai_ray.study import Study, Trial, digest
from cleanai_ray.workspace import methods_need, needs_outputs


def dense_key(study: Study) -> str:
    """Return the digest of everything that the dense model and its score depend on: a weights file by its content."""
    weights = study.model.weights
    file = Path(weights).expanduser() if weights not in (None, "pretrained") else None
    content = hashlib.sha256(file.read_bytes()).hexdigest() if file is not None and file.is_file() else None
    evaluation = study.evaluation.model_dump(exclude={"latency"})
    return digest([study.model.model_dump(), content, study.data.model_dump(), evaluation])


def calibration_key(study: Study, dense_digest: str) -> str:
    """Return the digest of everything that the calibration depends on."""
    gradients = methods_need(study, "needs_gradients")
    split = study.evaluation.split
    return digest([dense_digest, study.data.model_dump(), split, gradients, needs_outputs(study)])


def trial_key(study: Study, trial: Trial, dense_digest: str) -> str:
    """Return the digest of everything that a trial's outcome depends on."""
    sections = ("data", "pruning", "repair", "finetune", "evaluation")
    parts = {name: getattr(study, name).model_dump() for name in sections}
    return digest([trial.model_dump(), dense_digest, parts])
