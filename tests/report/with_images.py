"""Studies whose trials are known image by image: drawn from chances that a test sets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from report.tables import empty_tables, frame

from cleanai_ray.analysis.frames import StudyFrames
from cleanai_ray.storage import schemas
from cleanai_ray.storage.image_schemas import CORRECT, IMAGES, TEST, VALIDATION, Bits, pack

N = 2000
DECIDES = np.arange(N) < N // 2
MOST_ACCURATE = {"recommend": {"max_macs": 1.0}}


def right(validation: int, test: int) -> np.ndarray:
    """The first so many images of each half are right."""
    place = np.arange(N) % (N // 2)
    return np.where(DECIDES, place < validation, place < test)


DENSE = right(930, 930)


def study_with_images(
    trials: Sequence[Mapping[str, Any]],
    correct: Sequence[Bits],
    dense: Bits,
    decides: Bits,
    *,
    labels: np.ndarray | None = None,
    study: Mapping[str, Any] | None = None,
) -> StudyFrames:
    """Return a study of trials with columns of results.parquet, and the images that each and the dense model get right.

    Args:
        trials: Columns of each trial; what is not given is that of a magnitude trial of ratio 0.3.
        correct: The images that each gets right, [N] each.
        dense: The images that the dense model gets right, [N].
        decides: The images that decide, [N]; without any, the accuracies by role are not recorded.
        labels: Classes, [N]; all 0 by default.
        study: The study file.
    """
    rows, bits = [], []
    for number, (given, hits) in enumerate(zip(trials, correct, strict=True)):
        row: dict[str, Any] = {"method": "magnitude", "ratio": 0.3, "mode": "local", "steps": 1, "seed": 0} | dict(
            given
        )
        row = {"trial_id": f"{row['method']}-{number}", "status": schemas.OK, "num_classes": 10, **row}
        row |= {"macs_dense": 100, "accuracy": float(hits.mean()), "accuracy_dense": float(dense.mean())}
        row |= {"macs": row.get("macs", 50), "num_evaluated": len(hits)}
        row |= {"lost": int((dense & ~hits).sum()), "gained": int((hits & ~dense).sum())}
        if decides.any():
            for role, part in (("validation", decides), ("test", ~decides)):
                row[f"accuracy_{role}"], row[f"num_{role}"] = float(hits[part].mean()), int(part.sum())
                row[f"accuracy_{role}_dense"] = float(dense[part].mean())
        rows.append(row)
        bits.append({"trial_id": row["trial_id"], "num_images": len(hits), "correct": pack(hits), "scored": None})
    classes = np.zeros(len(dense), dtype=int) if labels is None else labels
    images = [
        {
            "number": number,
            "split": "test",
            "role": VALIDATION if decides[number] else TEST,
            "label": int(classes[number]),
            "correct_dense": bool(dense[number]),
        }
        for number in range(len(dense))
    ]
    return StudyFrames(
        results=frame(rows, schemas.RESULTS),
        **empty_tables(),
        study=study or {},
        images=frame(images, IMAGES),
        correct=frame(bits, CORRECT),
    )
