"""Images of another split that choose: in no other role, as many of each class, the same whatever is calibrated on."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from image_trees import opened
from test_data_roles import Sizes, placed

from cleanai_ray.config.evaluation import EvaluationSection
from cleanai_ray.config.sections import CalibrationSection, DataSection
from cleanai_ray.data import SampleRoles, assign_roles
from cleanai_ray.data.balanced_draw import balanced_draw
from cleanai_ray.data.source import ImageSource
from cleanai_ray.errors import DataError

ROLES = ("calibration", "training", "validation", "evaluation", "selection")


def roles_of(
    source: ImageSource, validation: dict[str, Any] | None, *, trains: bool = False, **calibration: Any
) -> SampleRoles:
    data = DataSection(name="sizes", validation_fraction=0.1, calibration=CalibrationSection(**calibration))
    return assign_roles(data, EvaluationSection(validation=validation), source, trains=trains)


def of_classes(labels: list[int], **sizes: int) -> Sizes:
    source = Sizes(train=len(labels), **sizes)
    source.known = np.array(labels)
    return source


@given(
    train=st.integers(20, 300),
    val=st.integers(20, 60),
    split=st.sampled_from(["train", "val"]),
    calibrated=st.sampled_from(["train", "val"]),
    samples=st.one_of(st.none(), st.integers(1, 9)),
    num_calibrated=st.integers(1, 9),
    seeds=st.sampled_from([0, (0, 1, 2)]),
    is_labelled=st.booleans(),
)
def test_no_image_is_in_two_roles(train, val, split, calibrated, samples, num_calibrated, seeds, is_labelled) -> None:
    source = of_classes([number % 3 for number in range(train)], val=val, test=11)
    source.known = source.known if is_labelled else None
    chosen = {"split": split, "samples": samples}
    calibration = {"samples": num_calibrated, "split": calibrated, "seed": seeds, "withhold_from_training": True}
    roles = roles_of(source, chosen, **calibration)
    sets = {role: placed(roles, role) for role in ROLES}
    for one, other in itertools.combinations(ROLES, 2):
        assert not sets[one] & sets[other], (one, other)
    assert all(len(sets[role]) == len(getattr(roles, role)) for role in ROLES)
    assert {name for name, _ in sets["selection"]} == {split}
    assert sets["evaluation"] == {("test", number) for number in range(11)}, "all are reported on"
    available = train - len(roles.validation) if split == "train" else val
    most = available // 10 if split in ("train", calibrated) else available
    assert len(roles.selection) == (samples or max(1, min(11, most)))
    assert roles.selection.dtype == np.int64
    assert roles.selection.tolist() == sorted(roles.selection.tolist())
    again = roles_of(source, chosen, samples=3, split=calibrated, seed=7)
    assert again.selection.tolist() == roles.selection.tolist(), "whatever is calibrated on"


def test_without_the_section_the_roles_are_as_they_were() -> None:
    source = of_classes([0, 1] * 50, test=20)
    with_none, chosen = roles_of(source, None, samples=10), roles_of(source, {"samples": 20}, samples=10)
    assert not len(with_none.selection)
    assert with_none.validation.tolist() == chosen.validation.tolist()
    assert len(with_none.training) == 80
    assert len(chosen.training) == 60


@given(
    labels=st.lists(st.integers(0, 4), min_size=1, max_size=60),
    share=st.floats(0, 1),
    seed=st.integers(0, 3),
)
def test_classes_are_drawn_as_often_as_each_other_while_they_last(labels: list[int], share: float, seed: int) -> None:
    candidates, classes = 100 + np.arange(len(labels)), np.array(labels)
    number = round(share * len(labels))
    drawn = balanced_draw(candidates, classes, number, [seed])
    assert len(set(drawn.tolist())) == len(drawn) == number
    assert set(drawn.tolist()) <= set(candidates.tolist())
    counts = {label: int((classes[drawn - 100] == label).sum()) for label in set(labels)}
    most = max(counts.values())
    for label, count in counts.items():
        assert count >= min(most - 1, labels.count(label)), "it has fewer only if there are no more"
    if number:
        fewer = balanced_draw(candidates, classes, number - 1, [seed])
        assert set(fewer.tolist()) < set(drawn.tolist())


def test_a_folder_sorted_by_class_is_drawn_from_all_over() -> None:
    source = of_classes([number // 100 for number in range(1000)], test=50)
    drawn = roles_of(source, {"samples": 50}, samples=10).selection
    assert np.bincount(drawn // 100).tolist() == [5] * 10


def test_what_cannot_be_drawn_is_an_error() -> None:
    source = Sizes(train=100, test=20)
    with pytest.raises(
        DataError, match=r"evaluation.validation.samples is 91; allowed: at most 89, .* without its validation samples"
    ):
        roles_of(source, {"samples": 91}, samples=5)
    with pytest.raises(DataError, match=r"validation.split 'val' and evaluation.split 'test' are the same split"):
        roles_of(source, {"split": "val"}, samples=5)
    with pytest.raises(DataError, match=r"no split 'extra'; allowed: train, test"):
        roles_of(source, {"split": "extra"}, samples=5)
    with pytest.raises(DataError, match=r"data.calibration.samples is 81; allowed: at most 80"):
        roles_of(source, {"samples": 10}, samples=81)


def test_images_that_choose_leave_some_to_whatever_else_needs_their_split() -> None:
    source = Sizes(train=1000, val=50, test=20)
    with pytest.raises(DataError, match=r"validation.samples is 900; allowed: at most 899, .*, less one, since"):
        roles_of(source, {"samples": 900}, samples=64)
    left = r"calibration.samples is 64; allowed: at most 10, the size of split 'train' without its validation samples "
    with pytest.raises(DataError, match=left + r"and the 890 that choose \(evaluation.validation\)$"):
        roles_of(source, {"samples": 890}, samples=64)
    with pytest.raises(DataError, match=r"at most 30, the size of split 'val' without the 20 that choose \(eval"):
        roles_of(source, {"split": "val", "samples": 20}, samples=31, split="val")
    elsewhere = {"samples": 5, "split": "val"}
    assert len(roles_of(source, {"samples": 900}, **elsewhere).selection) == 900, "nothing else needs the split"
    with pytest.raises(DataError, match=r"validation.samples is 900; allowed: at most 899"):
        roles_of(source, {"samples": 900}, **elsewhere, trains=True)
    everything = {"samples": 890, "withhold_from_training": True}
    with pytest.raises(
        DataError, match=r"none of the 1000 images .* 100 validate, 10 choose .*, 890 are calibrated on"
    ):
        roles_of(source, {"samples": 10}, **everything, trains=True)


@pytest.mark.parametrize(
    ("kind", "root", "number"),
    [("image_folder", "imagenet_root", 3), ("parquet_images", "parquet_root", 10), ("cifar10", "cifar_root", 10)],
)
def test_classes_are_those_of_the_images(kind: str, root: str, number: int, request: pytest.FixtureRequest) -> None:
    source = opened(kind, root=str(request.getfixturevalue(root)), num_classes=number)
    for split in source.splits:
        known = source.classes(split)
        assert known is not None
        assert known.dtype == np.int64
        dataset = source.dataset(split)
        assert known.tolist() == [dataset[index][1] for index in range(source.num_samples(split))]
