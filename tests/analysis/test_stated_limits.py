"""The words of limits and counts."""

from __future__ import annotations

from cleanai_ray.analysis.limits import LIMITS, write_beyond
from cleanai_ray.analysis.numbers import counted, plural
from cleanai_ray.nn.notices import collected_notices, inform, notice


def test_one_is_in_the_singular() -> None:
    assert LIMITS["max_accuracy_loss"].write(1.0) == "1 point"
    assert LIMITS["max_accuracy_loss"].write(3.7) == "3.7 points"
    assert [plural(1, "class"), plural(2, "class"), counted("1.0", "point")] == ["1 class", "2 classes", "1.0 points"]


def test_a_loss_beyond_a_limit_never_reads_like_the_limit() -> None:
    assert write_beyond("max_accuracy_loss", 1.04, 1.0) == "1.04 points"


def test_information_is_no_warning() -> None:
    with collected_notices() as found:
        inform("86 tensors, taken from 'state_dict'")
        notice("the head is new")
    assert list(found) == ["the head is new"]
    assert found.information == ["86 tensors, taken from 'state_dict'"]
