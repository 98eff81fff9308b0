"""The controls of a study beside its pruned models: whether what pruning gives could be had without it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import polars as pl

from cleanai_ray.analysis.chosen import has_test_images, reported_row, selection_view
from cleanai_ray.analysis.frames import StudyFrames
from cleanai_ray.analysis.image_evidence import between
from cleanai_ray.analysis.paired import PairedDifference
from cleanai_ray.storage.image_schemas import TEST

DENSE_FINETUNED = "dense_finetuned"


@dataclass(frozen=True)
class BesideControl:
    """A control, and the pruned model that it is compared with.

    Attributes:
        control: Its row, as `StudyFrames.controls` has it.
        accuracy: Its accuracy on the images that are reported on.
        pruned: The row of the pruned model, with its accuracy on these images; None where none has a result.
        difference: The accuracy of the pruned model minus the control's, on the same images; None where not known.
    """

    control: dict[str, Any]
    accuracy: float
    pruned: dict[str, Any] | None
    difference: PairedDifference | None


def beside_controls(study: StudyFrames) -> list[BesideControl]:
    """Return every control that succeeded, kind by kind, with a pruned model chosen on the images that decide.

    That is the best configuration at the same ratio or budget; beside the fine-tuned dense model, which has none, the
    chosen trial of the study. Both are reported on images that decided nothing, where the study has such images.
    """
    if study.controls.is_empty():
        return []
    has_test = has_test_images(study)
    best = _best_by_amount(study)
    found = []
    ordered = study.controls.sort("control", "amount_order", "seed", "calibration_seed", maintain_order=True)
    for row in ordered.iter_rows(named=True):
        name = best.get(row["amount"])
        if row["control"] == DENSE_FINETUNED and study.best is not None:
            name = study.best["trial_id"]
        pruned = None if name is None else reported_row(study, name, has_test=has_test)
        difference = None if name is None else between(study, name, row["trial_id"], TEST if has_test else None)
        found.append(BesideControl(row, _accuracy(row, has_test=has_test), pruned, difference))
    return found


def _best_by_amount(study: StudyFrames) -> dict[str, str]:
    """Return the trial that stands for the best configuration of each ratio or budget, by the images that decide."""
    if study.ok.is_empty():
        return {}
    names: dict[str, str] = {}
    ranked = selection_view(study).ranked.filter(pl.col("quantization") == study.base_quantization)
    for row in ranked.iter_rows(named=True):
        names.setdefault(row["amount"], row["trial_id"])
    return names


def _accuracy(row: dict[str, Any], *, has_test: bool) -> float:
    tested = row["accuracy_test"] if has_test else None
    return float(row["accuracy"] if tested is None else tested)
