"""The accuracy of the chosen trial in each class against the dense model's, in numbers and in plain words."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
import polars as pl

from cleanai_ray.analysis.comparisons import ALPHA, holm
from cleanai_ray.analysis.frames import StudyFrames
from cleanai_ray.analysis.image_evidence import hits_of, mask_of
from cleanai_ray.analysis.numbers import p_text, percent, plural
from cleanai_ray.analysis.paired import exact_p
from cleanai_ray.analysis.score_words import ACCURACY, words_of_study
from cleanai_ray.storage.image_schemas import TEST

_LONGEST = 24
"""Characters of a name that are shown."""


@dataclass(frozen=True)
class ClassChange:
    """One class.

    Attributes:
        label: The class.
        dense: Accuracy of the dense model in it, in [0, 1].
        accuracy: That of the trial.
        num_images: Its images.
        p_value: P-value of McNemar's exact test, corrected by Holm for all classes; None where single images were not
            kept, so that there is no test.
        is_counted: True if the scores are shares of right answers.
        name: Its name, where the data set says more than its number.
    """

    label: int
    dense: float
    accuracy: float
    num_images: int
    p_value: float | None
    is_counted: bool = True
    name: str | None = None

    @property
    def has_fallen(self) -> bool:
        """True if the class lost accuracy, by chance or not."""
        return self.accuracy < self.dense

    @property
    def is_worse(self) -> bool:
        """True if the class lost accuracy beyond chance."""
        return self.p_value is not None and self.p_value < ALPHA and self.accuracy < self.dense

    def __str__(self) -> str:
        label = numbered(self.label, self.name)
        if not self.is_counted:
            verb = "fell" if self.accuracy < self.dense else "rose"
            return f"{label} {verb} from {percent(self.dense)} to {percent(self.accuracy)}"
        moved = round(self.num_images * (self.accuracy - self.dense))
        if not moved:
            return f"{label} stayed at {percent(self.dense)}"
        verb = "fell" if moved < 0 else "rose"
        span = f"from {percent(self.dense)} to {percent(self.accuracy)}"
        return f"{label} {verb} {span} ({abs(moved)} of {plural(self.num_images, 'image')})"

    @property
    def sentence(self) -> str:
        """The change in a sentence, with whether it may be chance."""
        text = str(self)
        text = text[0].upper() + text[1:]
        if not self.is_counted:
            return f"{text}; single answers were not kept, so it is not known if that is chance."
        if self.p_value is None:
            return f"{text}; single images were not kept, so it is not known if that is chance."
        if round(self.num_images * (self.accuracy - self.dense)) == 0:
            return f"{text}."
        if self.p_value >= ALPHA:
            return f"{text}, which may be chance."
        return f"{text}, more than chance explains ({p_text(self.p_value)})."


def numbered(label: int, name: str | None) -> str:
    """Return a class by its number and its name, if it has one: `class 4 (bag)`."""
    return f"class {label}" if name is None else f"class {label} ({name})"


def names_of_classes(study: StudyFrames) -> dict[int, str]:
    """Return the names of classes by their numbers, without those that are but the number."""
    names = study.environment.get("class_names")
    listed = enumerate(names) if isinstance(names, list) else ()
    return {number: _short(str(name)) for number, name in listed if str(number) not in str(name).split()}


def _short(name: str) -> str:
    return name if len(name) <= _LONGEST else f"{name[: _LONGEST - 1]}\N{HORIZONTAL ELLIPSIS}"


def class_changes(study: StudyFrames) -> tuple[ClassChange, ...]:
    """Return how each class fares with the chosen trial, on the images that it is reported on, the worst first."""
    best = study.best
    if best is None:
        return ()
    found = _image_by_image(study, best["trial_id"]) or _recorded(study, best["trial_id"])
    names = names_of_classes(study)
    found = [replace(one, name=names.get(one.label)) for one in found]
    return tuple(sorted(found, key=lambda one: (one.accuracy - one.dense, one.label)))


def _image_by_image(study: StudyFrames, trial_id: str) -> list[ClassChange]:
    found = hits_of(study, trial_id)
    if found is None:
        return []
    part = found[1] & mask_of(study, TEST if study.choice.has_test_images else None)
    own, labels = found[0][part], study.images["label"].to_numpy()[part]
    dense = study.images["correct_dense"].to_numpy()[part]
    classes = [labels == label for label in np.unique(labels)]
    counts = [(int((dense & ~own)[one].sum()), int((own & ~dense)[one].sum())) for one in classes]
    corrected = holm([exact_p(lost, gained) for lost, gained in counts])
    return [
        ClassChange(int(labels[one][0]), float(dense[one].mean()), float(own[one].mean()), int(one.sum()), p_value)
        for one, p_value in zip(classes, corrected, strict=True)
    ]


def classes_of(study: StudyFrames, trial_ids: Iterable[str]) -> pl.DataFrame:
    """Return the classes of some trials with the columns of classes.parquet, on the images that are reported on.

    Where single images were not kept, they are those that classes.parquet is of.
    """
    found = [_counted(study, trial_id) for trial_id in dict.fromkeys(trial_ids)]
    return pl.concat([study.classes.clear(), *found]) if found else study.classes.clear()


def _counted(study: StudyFrames, trial_id: str) -> pl.DataFrame:
    recorded = study.classes.filter(pl.col("trial_id") == trial_id)
    found = hits_of(study, trial_id) if study.choice.has_test_images else None
    if found is None:
        return recorded
    part = found[1] & mask_of(study, TEST)
    images = study.images.select("label", accuracy_dense="correct_dense").with_columns(accuracy=pl.Series(found[0]))
    rows = (
        images.filter(pl.Series(part))
        .group_by("label")
        .agg(pl.len().alias("num_evaluated"), pl.mean("accuracy_dense"), pl.mean("accuracy"))
    )
    named = rows.with_columns(trial_id=pl.lit(trial_id), change=pl.col("accuracy") - pl.col("accuracy_dense"))
    return named.select(pl.col(name).cast(kind) for name, kind in study.classes.schema.items())


def _recorded(study: StudyFrames, trial_id: str) -> list[ClassChange]:
    columns = ("label", "accuracy_dense", "accuracy", "num_evaluated")
    rows = study.classes.filter(pl.col("trial_id") == trial_id).select(columns).drop_nulls()
    counted = words_of_study(study).name == ACCURACY
    return [ClassChange(label, dense, found, count, None, counted) for label, dense, found, count in rows.rows()]
