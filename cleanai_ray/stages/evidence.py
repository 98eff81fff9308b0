"""The images that each model gets right, as rows of images.parquet and correct.parquet, and accuracies by role."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from cleanai_ray.evaluation.hits import Hits
from cleanai_ray.evaluation.kept_logits import KeptLogits
from cleanai_ray.storage.image_schemas import TEST, VALIDATION, Bits, of_other_split, pack, roles_of_images, unpack


def correct_row(trial_id: str, dense: KeptLogits, hits: Hits) -> dict[str, Any]:
    """Return a trial's row of correct.parquet, its bytes in hexadecimal digits, as a record of JSON holds them.

    Args:
        trial_id: The trial.
        dense: The dense model's logits, whose images are the rows of images.parquet.
        hits: The images that the trial's model gets right after the last stage.
    """
    correct, scored = hits.on(dense.numbers)
    return {
        "trial_id": trial_id,
        "num_images": len(dense.numbers),
        "correct": pack(correct).hex(),
        "scored": None if scored.all() else pack(scored).hex(),
    }


def decoded(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row of correct.parquet from that of a record."""
    return {**row, **{name: None if row[name] is None else bytes.fromhex(row[name]) for name in ("correct", "scored")}}


def role_columns(row: Mapping[str, Any], dense: KeptLogits, validation_share: float | None) -> dict[str, Any]:
    """Return the columns of results.parquet about the images that decide and those that decide nothing.

    They are null where one of the two sorts has no image that both models were scored on, or where the dense model's
    labels were not kept.

    Args:
        row: A trial's row, as `correct_row` returns it.
        dense: The dense model's logits.
        validation_share: Share of the images that decide; None if those of another split do.
    """
    columns: dict[str, Any] = {}
    for role in (VALIDATION, TEST):
        columns |= dict.fromkeys((f"accuracy_{role}", f"accuracy_{role}_dense", f"num_{role}"))
    correct_dense, content, count = dense.correct, decoded(row), row["num_images"]
    if correct_dense is None or count != len(dense.numbers):
        return columns
    correct = unpack(content["correct"], count)
    scored = np.ones(count, dtype=bool) if content["scored"] is None else unpack(content["scored"], count)
    decides = roles_of_images(dense.numbers, validation_share)
    parts = {VALIDATION: scored & decides, TEST: scored & ~decides}
    if not all(part.any() for part in parts.values()):
        return columns
    for role, part in parts.items():
        columns[f"accuracy_{role}"] = float(correct[part].mean())
        columns[f"accuracy_{role}_dense"] = float(correct_dense[part].mean())
        columns[f"num_{role}"] = int(part.sum())
    return columns


def image_rows(
    dense: KeptLogits, split: str, validation_share: float | None, selection_split: str = "train"
) -> list[dict[str, Any]]:
    """Return the rows of images.parquet; none where the dense model's labels were not kept.

    Args:
        dense: The dense model's logits and the labels.
        split: The split of the images that are reported on.
        validation_share: Share of these that decide; None if images of another split do.
        selection_split: That split.
    """
    correct = dense.correct
    if correct is None or dense.labels is None:
        return []
    decides: Bits = roles_of_images(dense.numbers, validation_share)
    is_other = dense.numbers < 0
    places = np.where(is_other, of_other_split(dense.numbers), dense.numbers)
    every = zip(places.tolist(), is_other, decides, dense.labels.tolist(), correct.tolist(), strict=True)
    return [
        {
            "number": number,
            "split": selection_split if is_of_other else split,
            "role": VALIDATION if is_validation else TEST,
            "label": label,
            "correct_dense": is_correct,
        }
        for number, is_of_other, is_validation, label, is_correct in every
    ]


def assign_image_roles(records: Iterable[dict[str, Any]], dense: KeptLogits, validation_share: float | None) -> None:
    """Write the accuracies by role into the rows of trials, since the share may have changed after a trial ran.

    Args:
        records: The record of each trial; one that was made before single images were kept stays as it is.
        dense: The dense model's logits.
        validation_share: Share of the images that decide; None if those of another split do.
    """
    for record in records:
        for row in record.get("hits", ()):
            record["row"] |= role_columns(row, dense, validation_share)
