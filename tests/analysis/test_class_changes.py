"""What happened to a class, in plain words, with whether it may be chance."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from report.tables import frame, study_of
from report.with_images import study_with_images

from cleanai_ray.analysis.class_changes import ClassChange, class_changes, classes_of
from cleanai_ray.analysis.paired import exact_p
from cleanai_ray.analysis.risks import find_risks
from cleanai_ray.storage import schemas


def test_the_sentence_of_a_class() -> None:
    # 197 of 214 images are 92.1 %, 192 are 89.7 %.
    fell = ClassChange(2, 197 / 214, 192 / 214, 214, 0.3)
    assert fell.sentence == "Class 2 fell from 92.1 % to 89.7 % (5 of 214 images), which may be chance."
    assert not fell.is_worse
    surely = replace(fell, p_value=0.004)
    assert surely.sentence == (
        "Class 2 fell from 92.1 % to 89.7 % (5 of 214 images), more than chance explains (p = 0.004)."
    )
    assert surely.is_worse
    assert "rose from 89.7 % to 92.1 % (5 of 214 images)" in ClassChange(2, 192 / 214, 197 / 214, 214, 0.3).sentence
    assert ClassChange(0, 0.5, 0.5, 10, 1.0).sentence == "Class 0 stayed at 50.0 %."
    assert "not known if that is chance" in replace(fell, p_value=None).sentence


def test_classes_are_tested_image_by_image_and_corrected_together() -> None:
    labels, place = np.arange(300) % 3, np.arange(300) // 3
    dense = place < 90
    own = np.where(labels == 1, place < 78, place < 89)  # class 1 loses 12 images of 100, the others one
    study = study_with_images([{}], [own], dense, np.zeros(300, dtype=bool), labels=labels)
    worst, *others = class_changes(study)
    assert (worst.label, worst.num_images) == (1, 100)
    assert (worst.dense, worst.accuracy) == pytest.approx((0.9, 0.78))
    assert worst.p_value == pytest.approx(3 * exact_p(12, 0))  # Holm: the smallest p-value counts three times
    assert worst.is_worse
    assert [one.label for one in others] == [0, 2]
    assert not any(one.is_worse for one in others)
    (risk,) = (risk for risk in find_risks(study) if risk.kind == "uneven classes")
    assert risk.details == ("class 1 fell from 90.0 % to 78.0 % (12 of 100 images), p = 0.001",)
    assert "the largest loss is 12.0 points" in risk.sentence


def test_charts_and_sentences_are_of_the_same_images() -> None:
    """Of each class, 50 images decide and 50 do not; of class 1 only the first suffer, of class 2 only the last."""
    labels, place = np.arange(300) % 3, np.arange(300) // 3
    dense, decides = place % 2 == 0, place < 50
    own = dense & ~((labels == 1) & (place < 20)) & ~((labels == 2) & (place >= 90))
    study = study_with_images([{}, {"method": "taylor"}], [own, dense], dense, decides, labels=labels)
    for trial_id, change in zip(study.ok["trial_id"], ((0, 0, -0.1), (0, 0, 0)), strict=True):
        found = classes_of(study, [trial_id]).sort("label")
        assert found.schema == study.classes.schema
        assert found["num_evaluated"].to_list() == [50, 50, 50]
        assert found["change"].to_list() == pytest.approx(change)
        assert found["accuracy_dense"].to_list() == pytest.approx([0.5, 0.5, 0.5])
    assert {one.num_images for one in class_changes(study)} == {50}
    whole = study_with_images([{}], [own], dense, np.zeros(300, dtype=bool), labels=labels)
    assert classes_of(whole, whole.ok["trial_id"]).equals(whole.classes)  # no image was set aside


def test_without_single_images_the_recorded_classes_are_told_without_a_test() -> None:
    study = study_of(lambda *_: 90.0, labels=("wanda",), ratios=(0.3,), modes=("local",), seeds=(0,))
    assert study.best is not None
    row = {"trial_id": study.best["trial_id"], "label": 4, "num_evaluated": 50, "accuracy_dense": 0.9, "accuracy": 0.8}
    known = replace(study, classes=frame([row | {"change": -0.1}], schemas.CLASSES))
    (only,) = class_changes(known)
    assert only.sentence == (
        "Class 4 fell from 90.0 % to 80.0 % (5 of 50 images); single images were not kept, so it is not known if that "
        "is chance."
    )
    assert class_changes(study) == ()


def test_a_class_of_another_score_is_not_counted_in_images() -> None:
    fell, same = ClassChange(3, 0.51, 0.46, 100, None, is_counted=False), ClassChange(3, 0.51, 0.49, 20, None, False)
    assert fell.sentence.startswith("Class 3 fell from 51.0 % to 46.0 %; single answers were not kept")
    assert same.sentence.startswith("Class 3 fell from 51.0 % to 49.0 %")


def test_classes_are_named_where_the_data_set_says_more_than_their_numbers() -> None:
    study = study_of(lambda *_: 90.0, labels=("wanda",), ratios=(0.3,), modes=("local",), seeds=(0,))
    assert study.best is not None
    names = ["background", "1", "digit 2", "tench, Tinca tinca (Linnaeus)"]
    row = {"trial_id": study.best["trial_id"], "num_evaluated": 50, "accuracy_dense": 0.9, "accuracy": 0.8}
    rows = [{**row, "label": label, "change": -0.1} for label in range(5)]
    known = replace(study, classes=frame(rows, schemas.CLASSES), environment={"class_names": names})
    told = [str(one).partition(" fell")[0] for one in class_changes(known)]
    short = "tench, Tinca tinca (Linnaeus)"[:23] + "\N{HORIZONTAL ELLIPSIS}"
    assert told == [
        "class 0 (background)",
        "class 1",
        "class 2",
        f"class 3 ({short})",
        "class 4",
    ]
    assert {one.name for one in class_changes(replace(known, environment={}))} == {None}
