"""Several runs of one study: networks, each trained one or several times, and the images that all were scored on."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from cleanai_ray.analysis.cells import gather
from cleanai_ray.analysis.chosen import has_test_images
from cleanai_ray.analysis.frames import StudyFrames, as_mapping
from cleanai_ray.analysis.score_words import words_of_study
from cleanai_ray.errors import ArtifactError
from cleanai_ray.registry import QUESTIONS
from cleanai_ray.storage.image_schemas import TEST, Bits, unpack

FEWEST_RUNS = 2

_OF_A_TRAINING = ("weights", "weights_key", "expected_accuracy", "train")
"""The keys of `model` in which the trainings of one network differ."""

Row = dict[str, Any]


@dataclass(frozen=True, eq=False)
class JointRun:
    """One run.

    Attributes:
        study: Its frames.
        network: The name of its network; equal for runs that differ in the training alone.
        training: What tells its training from the others of its network: the seed, or the digest of the weights where
            it began from given ones.
    """

    study: StudyFrames
    network: str
    training: str

    @property
    def name(self) -> str:
        """The run in words."""
        return f"{self.network}, training {self.training}"

    @cached_property
    def hits(self) -> dict[str, Bits]:
        """The images that each trial and control gets right, [N] each, by its id; without those that read only some."""
        count = len(self.study.images)
        columns = ("trial_id", "num_images", "correct", "scored")
        rows = self.study.correct.select(columns).rows()
        return {name: unpack(bits, count) for name, number, bits, scored in rows if number == count and scored is None}

    @cached_property
    def dense_hits(self) -> Bits:
        """The images that the dense model gets right, [N]."""
        return np.asarray(self.study.images["correct_dense"].to_numpy(), dtype=bool)


@dataclass(frozen=True, eq=False)
class JointStudy:
    """Several runs.

    Attributes:
        runs: The runs, those of one network together.
        num_planned: Runs that the whole study is to have; None where that is not known.
    """

    runs: tuple[JointRun, ...]
    num_planned: int | None = None

    @cached_property
    def networks(self) -> tuple[str, ...]:
        """The networks, in the order of their runs."""
        return tuple(dict.fromkeys(run.network for run in self.runs))

    @cached_property
    def groups(self) -> tuple[int, ...]:
        """The place of each run's network among `networks`."""
        return tuple(self.networks.index(run.network) for run in self.runs)

    @cached_property
    def shares_images(self) -> bool:
        """True if all runs were scored on the same images, in the same roles, and kept which of them are right."""
        told = ("number", "split", "role", "label")
        frames = [run.study.images.select(told) for run in self.runs]
        return len(frames[0]) > 0 and all(frame.equals(frames[0]) for frame in frames)

    @cached_property
    def is_tested(self) -> bool:
        """True if every run was scored on images that decide and on images that do not."""
        return self.shares_images and all(has_test_images(run.study) for run in self.runs)

    @cached_property
    def test_images(self) -> Bits:
        """The images that decided nothing, [N]; all images where all of them decide."""
        images = self.runs[0].study.images
        return (images["role"] == TEST).to_numpy() if self.is_tested else np.ones(len(images), dtype=bool)

    @property
    def told_images(self) -> Bits | None:
        """The same where the runs share their images; None where they do not."""
        return self.test_images if self.shares_images else None

    @cached_property
    def trials(self) -> tuple[tuple[Row, ...], ...]:
        """The trials of each run, failed ones included, with the columns of `cells.gather`."""
        return tuple(tuple(gather({run.name: run.study}).to_dicts()) for run in self.runs)

    @cached_property
    def amounts(self) -> tuple[str, ...]:
        """The ratios or budgets that all runs have, in words and in order."""
        own = [dict(run.study.trials.select("amount", "amount_order").rows()) for run in self.runs]
        shared = [amount for amount in own[0] if all(amount in others for others in own)]
        return tuple(sorted(shared, key=lambda amount: int(own[0][amount])))

    @cached_property
    def methods(self) -> tuple[str, ...]:
        """The methods that all runs have, sorted."""
        found = [{row["method"] for row in rows} for rows in self.trials]
        return tuple(sorted(set.intersection(*found)))

    @cached_property
    def primary(self) -> str | None:
        """The key of the question that all study files declare as primary; None where they declare none, or several."""
        declared = {as_mapping(run.study.study.get("questions")).get("primary") for run in self.runs}
        found = declared.pop() if len(declared) == 1 else None
        return found if found in QUESTIONS.names() else None

    @cached_property
    def coverage_metric(self) -> str | None:
        """The coverage metric that all study files declare; None likewise."""
        declared = {as_mapping(run.study.study.get("questions")).get("coverage_metric") for run in self.runs}
        return declared.pop() if len(declared) == 1 else None


def join_runs(studies: Sequence[StudyFrames], num_planned: int | None = None) -> JointStudy:
    """Return several runs as one study.

    Args:
        studies: Their frames.
        num_planned: Runs that the whole study is to have; None where that is not known.

    Raises:
        ArtifactError: When there are fewer than two, two are of one training of one network, or they do not score the
            same data by the same score.
    """
    if len(studies) < FEWEST_RUNS:
        raise ArtifactError(f"number of run directories is {len(studies)}; needed for a joint report: {FEWEST_RUNS}")
    for what, told in (("score", lambda one: words_of_study(one).name), ("data.name", _data)):
        found = list(dict.fromkeys(map(told, studies)))
        if len(found) > 1:
            raise ArtifactError(f"{what} is {' and '.join(map(str, found))}; allowed in a joint report: one")
    names = _networks(studies)
    runs = [JointRun(one, name, _training(one)) for one, name in zip(studies, names, strict=True)]
    runs.sort(key=lambda run: (names.index(run.network), len(run.training), run.training))
    for first, second in itertools.pairwise(runs):
        if first.name == second.name:
            raise ArtifactError(f"{first.name}: two run directories hold it; allowed in a joint report: one of each")
    return JointStudy(tuple(runs), num_planned)


def _data(study: StudyFrames) -> str:
    return str(as_mapping(study.study.get("data")).get("name"))


def _networks(studies: Sequence[StudyFrames]) -> list[str]:
    """Return a name per study: that of its model, or of the study where different models share one name."""
    shapes, names = [], []
    for study in studies:
        model = dict(as_mapping(study.study.get("model")))
        shapes.append(json.dumps({key: model[key] for key in sorted(model) if key not in _OF_A_TRAINING}))
        names.append(str(model.get("name") or model.get("factory") or study.name))
    is_clear = len(set(zip(shapes, names, strict=True))) == len(set(names))
    return names if is_clear else [study.name for study in studies]


def _training(study: StudyFrames) -> str:
    model = as_mapping(study.study.get("model"))
    train = as_mapping(model.get("train"))
    if "seed" in train and model.get("weights") is None:  # trained from other weights, the seed does not tell it
        return str(train["seed"])
    return str(as_mapping(study.environment.get("digests")).get("weights") or study.name)
