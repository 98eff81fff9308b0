"""Roles of samples: disjoint as promised, deterministic, and within what there is."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import Dataset

from cleanai_ray.config.calibration_draw import CalibrationDraw
from cleanai_ray.config.evaluation import EvaluationSection
from cleanai_ray.config.sections import CalibrationSection, DataSection
from cleanai_ray.data import ImageSource, SampleRoles, assign_roles
from cleanai_ray.errors import DataError


class Sizes(ImageSource):
    """Splits of given sizes: roles need no images. Of the training split, the classes may be given."""

    known: np.ndarray | None = None

    def __init__(self, **sizes: int) -> None:
        super().__init__(DataSection(name="sizes"), (3, 8, 8))
        self.splits = tuple(sizes)
        self._sizes = sizes

    def num_samples(self, split: str) -> int:
        return self._sizes[self.resolve(split)]

    def dataset(self, split: str, *, augment: bool = False) -> Dataset:
        raise NotImplementedError

    def describe(self, split: str, index: int) -> str:
        return f"{split}[{index}]"

    def classes(self, split: str) -> np.ndarray | None:
        return self.known if split == "train" else None


def roles_of(source: ImageSource, *, evaluated: str = "test", scored: int | None = None, fraction=0.1, **calibration):
    data = DataSection(name="sizes", validation_fraction=fraction, calibration=CalibrationSection(**calibration))
    return assign_roles(data, EvaluationSection(split=evaluated, samples=scored), source)


ROLES = ("calibration", "training", "validation", "evaluation")


def placed(roles: SampleRoles, role: str) -> set[tuple[str, int]]:
    return {(getattr(roles, f"{role}_split"), int(index)) for index in getattr(roles, role)}


@settings(max_examples=150, deadline=None)
@given(
    train=st.integers(10, 400),
    test=st.integers(1, 50),
    fraction=st.floats(0.01, 0.49),
    share=st.floats(0.0, 1.0),
    seed=st.integers(0, 10),
    withhold=st.sampled_from([True, False, "auto"]),
)
def test_roles_are_disjoint_as_promised_and_deterministic(train, test, fraction, share, seed, withhold):
    source = Sizes(train=train, test=test)
    num_validation = max(1, round(fraction * train))
    samples = max(1, int(share * (train - num_validation)))
    arguments = {"fraction": fraction, "samples": samples, "seed": seed, "withhold_from_training": withhold}
    roles = roles_of(source, **arguments)
    sets = {role: placed(roles, role) for role in ROLES}
    for role in ROLES:
        indices = getattr(roles, role)
        assert indices.dtype == np.int64
        assert len(sets[role]) == len(indices)
    assert len(sets["calibration"]) == samples
    assert len(sets["validation"]) == num_validation
    assert len(sets["evaluation"]) == test
    for one, other in (("training", "validation"), ("training", "evaluation"), ("validation", "evaluation")):
        assert not sets[one] & sets[other]
    assert not sets["calibration"] & (sets["validation"] | sets["evaluation"])
    withheld = 5 * samples <= train if withhold == "auto" else withhold
    assert roles.calibration_withheld == withheld
    assert bool(sets["calibration"] & sets["training"]) != withheld
    used = sets["training"] | sets["validation"] | sets["calibration"]
    assert used == {("train", index) for index in range(train)}
    again = roles_of(source, **arguments)
    assert all(np.array_equal(getattr(roles, role), getattr(again, role)) for role in ROLES)


def test_validation_does_not_depend_on_what_is_calibrated():
    source = Sizes(train=100, test=20)
    first, second = roles_of(source, samples=10, seed=0), roles_of(source, samples=30, seed=5)
    assert np.array_equal(first.validation, second.validation)
    assert set(first.calibration.tolist()) != set(roles_of(source, samples=10, seed=1).calibration.tolist())


def scored(number: int | None, available: int, sampling: str = "random") -> list[int]:
    data = DataSection(name="sizes", calibration={"samples": 5})
    evaluation = EvaluationSection(samples=number, sampling=sampling)
    return assign_roles(data, evaluation, Sizes(train=100, test=available)).evaluation.tolist()


def test_evaluation_takes_the_first_samples_where_the_study_asks_for_them():
    assert scored(7, 20, "first") == [0, 1, 2, 3, 4, 5, 6]
    assert scored(None, 20) == scored(20, 20) == scored(20, 20, "first") == list(range(20))


def test_images_that_are_scored_are_drawn_from_a_sorted_folder_of_classes():
    # 1,000 classes of 50 images, sorted: the first 2,000 are 40 classes. A draw of 2,000 misses a class with
    # probability 0.96 ** 50 = 0.13, so about 870 are there, with a standard deviation of about 9.
    drawn = scored(2000, 50_000)
    assert drawn == sorted(set(drawn))
    assert len(drawn) == 2000
    assert 830 < len({index // 50 for index in drawn}) < 910
    assert drawn == scored(2000, 50_000)


def test_fewer_images_that_are_scored_are_part_of_more():
    assert set(scored(7, 20)) < set(scored(8, 20))


def test_more_samples_than_there_are_is_an_error():
    source = Sizes(train=100, test=20, val=30)
    with pytest.raises(
        DataError, match=r"data.calibration.samples is 91; allowed: at most 90, .*without its validation"
    ):
        roles_of(source, samples=91)
    with pytest.raises(
        DataError, match=r"data.calibration.samples is 31; allowed: at most 30, the size of split 'val'"
    ):
        roles_of(source, samples=31, split="val")
    with pytest.raises(DataError, match=r"evaluation.samples is 21; allowed: at most 20"):
        roles_of(source, samples=10, scored=21)


def test_calibration_on_another_split_leaves_training_alone():
    roles = roles_of(Sizes(train=100, val=30, test=20), samples=30, split="val")
    assert roles.calibration_split == "val"
    assert sorted(roles.calibration.tolist()) == list(range(30))
    assert roles.calibration_withheld
    assert len(roles.training) + len(roles.validation) == 100


def test_two_names_of_one_split_are_an_overlap():
    source = Sizes(train=100, val=30)
    with pytest.raises(DataError, match=r"split 'validation' and evaluation.split 'test' are the same split"):
        roles_of(source, samples=10, split="validation")
    roles = roles_of(source, samples=30, split="validation", allow_overlap=True)
    assert placed(roles, "calibration") == placed(roles, "evaluation")


def test_the_training_split_is_not_evaluated():
    with pytest.raises(DataError, match=r"evaluation.split is 'train', which is trained on; allowed: test"):
        roles_of(Sizes(train=100, test=20), samples=10, evaluated="train", split="test")


def test_without_a_training_split_nothing_is_trained_on():
    roles = roles_of(Sizes(val=30, test=20), samples=10, split="val")
    assert len(roles.training) == len(roles.validation) == 0


def test_unknown_splits_are_named():
    with pytest.raises(DataError, match=r"no split 'dev'; allowed: train, test"):
        roles_of(Sizes(train=100, test=20), samples=10, split="dev")


def test_no_draw_is_trained_on_whichever_is_calibrated_on():
    source = Sizes(train=200, test=20)
    data = DataSection(name="sizes", calibration=CalibrationSection(samples=[5, 10], seed=[0, 1, 2]))
    section = EvaluationSection(split="test")
    found = {draw: assign_roles(data, section, source, draw) for draw in data.calibration.draws()}
    for draw, roles in found.items():
        alone = roles_of(source, samples=draw.samples, seed=draw.seed)
        assert roles.calibration.tolist() == alone.calibration.tolist()
        assert roles.calibration_withheld
    drawn = set().union(*(roles.calibration.tolist() for roles in found.values()))
    assert len(drawn) > 10
    everything = set(range(200)) - set(roles_of(source, samples=5).validation.tolist())
    assert all(set(roles.training.tolist()) == everything - drawn for roles in found.values())
    assert assign_roles(data, section, source).calibration.tolist() == found[CalibrationDraw(5, 0)].calibration.tolist()


def test_draws_are_withheld_by_themselves_while_all_together_are_few():
    # 18 of 100 are at most a fifth; two draws of 18 hold more than 20 different images.
    source = Sizes(train=100, test=20)
    assert roles_of(source, samples=18).calibration_withheld
    assert not roles_of(source, samples=18, seed=[0, 1]).calibration_withheld


def test_disjoint_draws_share_no_sample_and_do_not_depend_on_each_other():
    source, section = Sizes(train=100, test=20), EvaluationSection(split="test")
    data = DataSection(name="sizes", calibration=CalibrationSection(samples=30, seed=[0, 1, 2], disjoint=True))
    drawn = [assign_roles(data, section, source, draw).calibration.tolist() for draw in data.calibration.draws()]
    assert [len(set(draw)) for draw in drawn] == [30, 30, 30]
    assert len(set().union(*drawn)) == 90
    alone = DataSection(name="sizes", calibration=CalibrationSection(samples=30, seed=2, disjoint=True))
    assert assign_roles(alone, section, source).calibration.tolist() == drawn[2]
    beyond = DataSection(name="sizes", calibration=CalibrationSection(samples=30, seed=3, disjoint=True))
    with pytest.raises(DataError, match=r"calibration.seed holds 3, .*disjoint is true; allowed: at most 2, since 90"):
        assign_roles(beyond, section, source)
