"""Risks of the evidence are named with their numbers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from report import synthetic
from report.tables import frame, study_of

from cleanai_ray.analysis.frames import StudyFrames
from cleanai_ray.analysis.risks import find_risks
from cleanai_ray.analysis.risks.base import Risk
from cleanai_ray.storage import schemas


def risks_of(study: StudyFrames, kind: str) -> list[Risk]:
    return [risk for risk in find_risks(study) if risk.kind == kind]


def flat(label: str, ratio: float, mode: str, steps: int, seed: int) -> float:
    return 92.5 - 5 * ratio - (label == "random")


GRID = {"labels": ("wanda", "random"), "seeds": (0, 1, 2)}


def test_every_unreadable_sample_is_listed(tmp_path: Path) -> None:
    tables = synthetic.make(methods=("wanda", "random"))
    skipped = {f"images/{number:03d}.jpg": "broken data\nstream" for number in range(30)}
    tables.environment["unreadable_samples"] = skipped
    (risk,) = risks_of(StudyFrames.load(tables.write(tmp_path)), "unreadable samples")
    assert "30 samples" in risk.sentence
    assert risk.details == tuple(f"{name}: broken data stream" for name in skipped)
    assert not risks_of(study_of(flat, **GRID), "unreadable samples")


def class_rows(study: StudyFrames, losses: tuple[float, ...]) -> StudyFrames:
    assert study.best is not None
    rows = [
        {
            "trial_id": study.best["trial_id"],
            "label": label,
            "num_evaluated": 1000,
            "accuracy_dense": 0.9,
            "accuracy": 0.9 - lost / 100,
            "change": -lost / 100,
        }
        for label, lost in enumerate(losses)
    ]
    return replace(study, classes=frame(rows, schemas.CLASSES))


def test_classes_that_lost_much_where_nothing_can_be_tested() -> None:
    study = class_rows(study_of(flat, **GRID), (0.0, 1.0, 1.0, 10.0))
    (risk,) = risks_of(study, "uneven classes")
    assert (risk.severity, risk.is_about_best) == ("info", True)
    assert "1 of 4 classes lost 10 points or more" in risk.sentence
    assert "single images were not kept" in risk.sentence
    assert risk.details == ("class 3 fell from 90.0 % to 80.0 % (100 of 1000 images)",)
    assert not risks_of(class_rows(study_of(flat, **GRID), (0.0, 1.0, 1.0, 9.9)), "uneven classes")


def test_winners_and_accuracies_that_hang_on_a_seed() -> None:
    def lucky(label: str, ratio: float, mode: str, steps: int, seed: int) -> float:
        first = (ratio, mode) == (0.3, "global")  # the cell of the best trial: 91.5 % on average, the others 91 %
        return flat(label, ratio, mode, steps, seed) + (first and label == "wanda") * (2 - 1.5 * seed)

    about_best, flips = risks_of(study_of(lucky, **GRID), "luck of a seed")
    assert "3.0 points to its seed" in about_best.sentence
    assert about_best.details == ("seed 0: 93.00 %", "seed 1: 91.50 %", "seed 2: 90.00 %")
    assert "1 of 4 cells" in flips.sentence
    assert flips.details == ("ratio 0.3, global: random, wanda",)
    assert not risks_of(study_of(flat, **GRID), "luck of a seed")


@pytest.mark.parametrize(("samples", "severity"), [(64, "medium"), (128, None), (49, "medium")])
def test_few_calibration_samples(samples: int, severity: str | None) -> None:
    study = study_of(flat, **GRID, study={"data": {"calibration": {"samples": samples}}})
    assert [risk.severity for risk in risks_of(study, "few calibration samples")] == ([severity] if severity else [])


def test_fewer_calibration_samples_than_a_few_a_class() -> None:
    study = study_of(flat, **GRID, environment={"samples": {"calibration": 1024}})
    many = replace(study, results=study.results.with_columns(num_classes=1000))
    assert "1024 calibration images are fewer than 5 a class" in risks_of(many, "few calibration samples")[0].sentence
