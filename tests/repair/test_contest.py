"""The contest between variants of repair: what is beaten is not finished, and the nearest finished one wins."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from cleanai_ray.errors import CalibrationError
from cleanai_ray.nn.notices import collected_notices
from cleanai_ray.repair.contest import Contest, Entry

WORSE = torch.tensor([1.0, 3.0, 1.0, 3.0])
"""Mean 2; standard deviation 2 / sqrt(3), of which half is the standard error: 0.577."""


def entry(
    distances: Sequence[float] | Tensor, finished: Sequence[float] | None = None, log: list[Entry] | None = None
) -> Entry:
    """A variant with some distances, and with others once it is finished."""

    def finish() -> tuple[nn.Module, Tensor]:
        assert finished is not None
        if log is not None:
            log.append(made)
        return nn.Identity(), torch.as_tensor(finished, dtype=torch.float64)

    made = Entry(
        record={},
        model=nn.Identity(),
        distances=torch.as_tensor(distances, dtype=torch.float64),
        finish=None if finished is None else finish,
    )
    return made


@pytest.mark.parametrize(
    ("distances", "best", "beaten"),
    [
        (WORSE, torch.full((4,), 0.5), False),  # Nearer by 1.5: 2.6 standard errors.
        (WORSE, torch.full((4,), 0.2), True),  # Nearer by 1.8: 3.1 standard errors.
        (WORSE, WORSE - 0.15, False),  # Nearer for every image alike, but by 8 % alone.
        (WORSE, WORSE - 0.25, True),  # By 14 %.
        (WORSE, WORSE, False),
        (torch.tensor([9.0]), torch.tensor([1.0]), False),  # One image says nothing about chance.
        (torch.tensor([math.inf, 1.0]), torch.tensor([5.0, 5.0]), True),
        (torch.full((2,), math.inf), torch.full((2,), math.inf), False),
    ],
)
def test_an_entry_is_beaten_beyond_chance_and_by_more_than_a_little(
    distances: Tensor, best: Tensor, beaten: bool
) -> None:
    assert entry(distances).is_beaten_by(entry(best)) is beaten


def test_what_is_beaten_is_not_finished_and_keeps_its_distance() -> None:
    log: list[Entry] = []
    contest = Contest()
    far, near = entry([9.0, 9.1], [0.0, 0.0], log), entry([1.0, 1.2], [0.8, 0.8], log)
    finished = entry([1.0, 1.1])
    for each in (far, near, finished):
        contest.enter(each)
    assert contest.decide() is near
    assert log == [near]
    assert [each.record["kl"] for each in (far, near, finished)] == pytest.approx([9.05, 0.8, 1.05])


def test_the_nearest_is_finished_first_and_may_beat_the_others() -> None:
    log: list[Entry] = []
    contest = Contest()
    second, first = entry([2.0, 2.1], [2.0, 2.1], log), entry([1.0, 1.2], [1.0, 1.1], log)
    contest.enter(second)
    contest.enter(first)
    assert contest.decide() is first
    assert log == [first]


def test_one_that_disappoints_does_not_win() -> None:
    contest = Contest()
    finished, waiting = entry([1.0, 1.0]), entry([0.5, 0.5], [3.0, 3.0])
    contest.enter(finished)
    contest.enter(waiting)
    assert contest.decide() is finished
    assert waiting.record["kl"] == 3.0


DISTANCES = st.lists(st.floats(0, 10), min_size=3, max_size=3)


@given(st.lists(st.tuples(DISTANCES, st.none() | DISTANCES), min_size=1, max_size=6))
def test_no_finished_entry_and_none_that_could_have_won_is_nearer(cases: list) -> None:
    contest, entries = Contest(), [entry(*case) for case in cases]
    for each in entries:
        contest.enter(each)
    winner = contest.decide()
    assert winner.finish is None
    for each in entries:
        assert each.record["kl"] == each.distance
        # One left unfinished was beaten by a finished one that was nearer, and the winner is no farther than that one.
        assert winner.distance <= each.distance


def failing(error: Exception) -> Entry:
    """A variant that fails when it is finished."""
    made = entry([0.0, 0.0], finished=[])
    made.record["compensation"] = "unfolded"

    def finish() -> tuple[nn.Module, Tensor]:
        raise error

    made.finish = finish
    return made


@pytest.mark.parametrize("error", [CalibrationError("not finite"), torch.linalg.LinAlgError("singular")])
def test_a_variant_that_fails_costs_only_itself(error: Exception) -> None:
    contest, other, record = Contest(), entry([1.0, 1.0]), {"compensation": "closed_form"}
    lost = failing(error)
    contest.enter(lost)
    contest.enter(other)
    with collected_notices() as notices:
        with contest.losing(record):
            raise error
        assert contest.decide() is other
    assert lost.record["kl"] == record["kl"] == math.inf
    assert [str(error) in text for text in notices] == [True, True]


def test_the_first_error_is_raised_if_all_fail_and_those_of_the_hardware_at_once() -> None:
    contest = Contest()
    contest.enter(failing(CalibrationError("first")))
    contest.enter(failing(CalibrationError("second")))
    with pytest.raises(CalibrationError, match="first"):
        contest.decide()
    memory = CalibrationError("repair stopped")
    memory.__cause__ = torch.OutOfMemoryError("CUDA out of memory")
    with pytest.raises(CalibrationError, match="stopped"), Contest().losing({"compensation": "none"}):
        raise memory
