"""The roles of samples: calibration, training, validation, selection and evaluation."""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass, field

import numpy as np

from cleanai_ray.config.calibration_draw import CalibrationDraw
from cleanai_ray.config.evaluation import EvaluationSection
from cleanai_ray.config.sections import DataSection
from cleanai_ray.data.balanced_draw import balanced_draw
from cleanai_ray.data.source import ImageSource
from cleanai_ray.errors import DataError

_TRAIN = "train"
_VALIDATION_SEED = 0
_EVALUATION_SEED = 2
_DISJOINT_SEED = 3
_SELECTION_SEED = 4
_SELECTION_SHARE = 10
_AUTO_SHARE = 0.2


@dataclass(frozen=True, kw_only=True, eq=False)
class SampleRoles:
    """Indices (int64) into the splits of a data set, by role, and the split that each refers to.

    Attributes:
        calibration: Samples that activation statistics and repair may use, in the order drawn.
        training: Samples that fine-tuning learns from, ascending.
        validation: Samples that decide on the best epoch and early stopping, ascending.
        evaluation: Samples that are scored, ascending.
        calibration_split: The split of `calibration`.
        training_split: The split of `training`.
        validation_split: The split of `validation`.
        evaluation_split: The split of `evaluation`.
        calibration_withheld: True if no calibration sample is trained on.
        selection: Samples of another split than `evaluation` that decide which trial is chosen, ascending; none where
            some of the evaluation samples do.
        selection_split: The split of `selection`.
    """

    calibration: np.ndarray
    training: np.ndarray
    validation: np.ndarray
    evaluation: np.ndarray
    calibration_split: str
    training_split: str
    validation_split: str
    evaluation_split: str
    calibration_withheld: bool
    selection: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    selection_split: str = _TRAIN


def assign_roles(
    data: DataSection,
    evaluation: EvaluationSection,
    source: ImageSource,
    draw: CalibrationDraw | None = None,
    *,
    trains: bool = False,
) -> SampleRoles:
    """Assign the samples of a data set their roles. The same arguments give the same roles.

    - evaluation: `evaluation.samples` of `evaluation.split` (all if null), in the split's order: drawn with a fixed
      seed, so that a smaller number is part of a larger one, or the first ones if `evaluation.sampling` is `first`.
    - validation: `data.validation_fraction` of the `train` split (at least one sample), drawn with a fixed seed and
      regardless of classes, so that it does not depend on the calibration samples.
    - selection: `evaluation.validation.samples` of `evaluation.validation.split`, drawn with a fixed seed, as many of
      each class; never a validation sample. They do not depend on the calibration samples. If null, as many as are
      scored, and at most a tenth of `train` and of a split that is calibrated on.
    - calibration: `data.calibration.samples` of `data.calibration.split`, drawn with `data.calibration.seed`; never a
      validation or selection sample. With `data.calibration.disjoint`, draws of different seeds share none.
    - training: the rest of the `train` split, also without the calibration samples of all draws if
      `data.calibration.withhold_from_training` is true, or is `auto` and they are at most a fifth of the split. The
      samples of all draws are left out because all draws share one dense model.

    Training, validation, selection and evaluation never share a sample, nor does calibration with validation or
    selection. Calibration and evaluation share samples only if both name the same split, which
    `data.calibration.allow_overlap` must permit. A data set without a `train` split has no training and no validation
    samples. A data set's own validation split is used only if the study names it.

    Args:
        data: The study's `data`.
        evaluation: The study's `evaluation`.
        source: The opened data set.
        draw: The draw whose samples are calibrated on, one of those that `data` defines; the first by default.
        trains: True if the study trains on labelled images, so that some must be left.

    Raises:
        DataError: When a split is unknown or too small, or when splits that must differ are the same.
    """
    calibration_split = source.resolve(data.calibration.split)
    evaluation_split = source.resolve(evaluation.split)
    _check_splits(data, evaluation, calibration_split, evaluation_split, source)
    scored = _scored(evaluation, source.num_samples(evaluation_split))
    train_size = source.num_samples(_TRAIN) if _TRAIN in source.splits else 0
    validation, rest = _validation_and_rest(data, train_size)
    needed = {calibration_split, *([_TRAIN] if trains else [])}
    selection_split, selection = _selection(evaluation, source, evaluation_split, len(scored), rest, needed)
    rest = np.setdiff1d(rest, selection) if selection_split == _TRAIN else rest
    candidates = rest if calibration_split == _TRAIN else np.arange(source.num_samples(calibration_split))
    num_chosen = len(selection) if selection_split == calibration_split else 0
    candidates = np.setdiff1d(candidates, selection) if num_chosen else candidates
    calibration, union = _drawn(data, draw, candidates, num_chosen)
    withheld = calibration_split != _TRAIN or _withholds(data, len(union), train_size)
    if withheld and calibration_split == _TRAIN:
        rest = np.setdiff1d(rest, union)
    roles = SampleRoles(
        calibration=calibration.astype(np.int64),
        training=rest.astype(np.int64),
        validation=validation.astype(np.int64),
        evaluation=scored,
        calibration_split=calibration_split,
        training_split=_TRAIN,
        validation_split=_TRAIN,
        evaluation_split=evaluation_split,
        calibration_withheld=withheld,
        selection=selection,
        selection_split=selection_split,
    )
    if trains and not len(rest):
        raise DataError(_none_left(source, roles, train_size))
    return roles


def _validation_and_rest(data: DataSection, train_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Cut the training split into the images that validate and all others, both ascending."""
    order = np.random.default_rng([_VALIDATION_SEED, train_size]).permutation(train_size)
    number = min(train_size, max(1, round(data.validation_fraction * train_size)))
    return np.sort(order[:number]), np.sort(order[number:])


def _drawn(
    data: DataSection, draw: CalibrationDraw | None, candidates: np.ndarray, num_chosen: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the images of one draw (None: the first), and those of all draws."""
    draws = data.calibration.draws()
    drawn = {one: _draw(data, one, candidates, num_chosen) for one in draws}
    return drawn[draw or draws[0]], np.unique(np.concatenate(list(drawn.values())))


def _none_left(source: ImageSource, roles: SampleRoles, train_size: int) -> str:
    """Say why no image is left to train on."""
    chosen = len(roles.selection) if roles.selection_split == _TRAIN else 0
    others = train_size - len(roles.validation) - chosen
    return (
        f"none of the {train_size} images of split '{_TRAIN}' of data set '{source.name}' is left to train on: "
        f"{len(roles.validation)} validate, {chosen} choose (evaluation.validation), {others} are calibrated on; "
        "needed: at least 1"
    )


def _selection(
    evaluation: EvaluationSection,
    source: ImageSource,
    evaluation_split: str,
    num_scored: int,
    rest: np.ndarray,
    needed: Set[str],
) -> tuple[str, np.ndarray]:
    """Return the split of the images that choose, and their indices.

    `rest` is the training split without the images that validate; of the splits `needed`, some images must be left.
    """
    section = evaluation.validation
    if section is None:
        return _TRAIN, np.empty(0, dtype=np.int64)
    split = source.resolve(section.split)
    if split == evaluation_split:
        raise DataError(
            f"evaluation.validation.split '{section.split}' and evaluation.split '{evaluation.split}' are the same "
            f"split of data set '{source.name}'; allowed: another one of {', '.join(source.splits)}"
        )
    candidates = rest if split == _TRAIN else np.arange(source.num_samples(split))
    usual = len(candidates) // _SELECTION_SHARE if split in {_TRAIN, *needed} else len(candidates)
    number = section.samples or max(1, min(num_scored, usual))
    most = max(0, len(candidates) - (split in needed))
    if number > most:
        without = " without its validation samples" if split == _TRAIN else ""
        less = ", less one, since the study learns from the others" if split in needed else ""
        raise DataError(
            f"evaluation.validation.samples is {number}; allowed: at most {most}, the size of split "
            f"'{section.split}'{without}{less}"
        )
    classes = source.classes(split)
    own = None if classes is None else classes[candidates]
    return split, balanced_draw(candidates, own, number, [_SELECTION_SEED, len(candidates)])


def _check_splits(
    data: DataSection,
    evaluation: EvaluationSection,
    calibration_split: str,
    evaluation_split: str,
    source: ImageSource,
) -> None:
    if evaluation_split == _TRAIN:
        others = ", ".join(split for split in source.splits if split != _TRAIN) or "none in this data set"
        raise DataError(f"evaluation.split is '{evaluation.split}', which is trained on; allowed: {others}")
    if calibration_split == evaluation_split and not data.calibration.allow_overlap:
        raise DataError(
            f"data.calibration.split '{data.calibration.split}' and evaluation.split '{evaluation.split}' are the same "
            f"split of data set '{data.name}'; calibrate on another, or set data.calibration.allow_overlap: true"
        )


def _scored(evaluation: EvaluationSection, available: int) -> np.ndarray:
    if evaluation.samples is not None and evaluation.samples > available:
        raise DataError(
            f"evaluation.samples is {evaluation.samples}; allowed: at most {available}, "
            f"the size of split '{evaluation.split}'"
        )
    if evaluation.samples is None or evaluation.sampling == "first":
        return np.arange(available if evaluation.samples is None else evaluation.samples, dtype=np.int64)
    order = np.random.default_rng([_EVALUATION_SEED, available]).permutation(available)
    return np.sort(order[: evaluation.samples]).astype(np.int64)


def _draw(data: DataSection, draw: CalibrationDraw, candidates: np.ndarray, num_chosen: int) -> np.ndarray:
    """Return a draw from the candidates, of whose split `num_chosen` others choose."""
    if draw.samples > len(candidates):
        others = ["its validation samples"] if data.calibration.split == _TRAIN else []
        others += [f"the {num_chosen} that choose (evaluation.validation)"] if num_chosen else []
        without = f" without {' and '.join(others)}" if others else ""
        verb = "holds" if isinstance(data.calibration.samples, tuple) else "is"
        raise DataError(
            f"data.calibration.samples {verb} {draw.samples}; allowed: at most {len(candidates)}, "
            f"the size of split '{data.calibration.split}'{without}"
        )
    if not data.calibration.disjoint:
        generator = np.random.default_rng([1, draw.seed])
        return candidates[generator.permutation(len(candidates))[: draw.samples]]
    first, last = draw.seed * draw.samples, (draw.seed + 1) * draw.samples
    if last > len(candidates):
        most = len(candidates) // draw.samples - 1
        raise DataError(
            f"data.calibration.seed holds {draw.seed}, and data.calibration.disjoint is true; allowed: at most {most}, "
            f"since {len(candidates)} images hold {most + 1} draws of {draw.samples}"
        )
    return candidates[np.random.default_rng(_DISJOINT_SEED).permutation(len(candidates))[first:last]]


def _withholds(data: DataSection, num_calibrated: int, train_size: int) -> bool:
    choice = data.calibration.withhold_from_training
    return num_calibrated <= _AUTO_SHARE * train_size if choice == "auto" else bool(choice)
