"""What a reporter prints, with and without a terminal, and how it counts."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from cleanai_ray.executors.counts import ShardState, SweepState
from cleanai_ray.executors.progress import ProgressReporter


class Clock:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def row(trial_id: str, accuracy: float, macs: int, status: str = "ok") -> dict:
    return {"trial_id": trial_id, "accuracy": accuracy, "macs": macs, "status": status}


def reporter(*, terminal: bool) -> tuple[ProgressReporter, io.StringIO]:
    said = io.StringIO()
    return ProgressReporter(Console(file=said, width=160, highlight=False, force_terminal=terminal)), said


def test_the_pace_of_shards_is_that_after_the_first_one():
    clock = Clock()
    state = ShardState(total=10, clock=clock)
    assert state.seconds_left is None
    assert state.samples_per_second is None
    clock.now += 30  # Actors start, and the first shard is done.
    state.advance(1, 10, 60)
    assert state.seconds_left is None
    assert state.samples_per_second is None
    clock.now += 4
    state.advance(2, 10, 60)
    clock.now += 4
    state.advance(3, 10, 20)
    assert state.seconds_left == pytest.approx(8 / 2 * 7)
    assert state.samples_per_second == pytest.approx((60 + 20) / 8)
    assert state.describe() == "3 of 10 shards, 10 samples/s, 28 s left"


def test_a_pass_of_one_shard_that_is_done_has_no_time_left():
    state = ShardState(total=1, clock=Clock())
    assert state.describe() == "0 of 1 shards, time left unknown"
    state.advance(1, 1)
    assert state.describe() == "1 of 1 shards, 0 s left"


def test_shards_that_were_lost_and_samples_that_nobody_counts_are_no_trouble():
    clock = Clock()
    state = ShardState(total=4, clock=clock)
    for seconds, done in ((10, 1), (10, 2), (5, 0)):
        clock.now += seconds
        state.advance(done, 4)
    assert state.seconds_left is None
    for done in (1, 2):
        clock.now += 5
        state.advance(done, 4)
    assert state.seconds_left == pytest.approx((10 + 5 + 5 + 5) / 1 * 2)
    assert state.samples_per_second is None
    assert state.describe() == "2 of 4 shards, 50 s left"


def test_the_best_trial_is_the_most_accurate_then_the_cheapest_then_the_first_by_name():
    state = SweepState(total=6, workers=2)
    for found, best in (
        (row("d", 0.5, 100), "d"),
        (row("c", 0.9, 90), "c"),
        (row("z", 0.99, 1, status="failed"), "c"),
        (row("b", 0.9, 95), "c"),
        (row("e", 0.9, 80), "e"),
        (row("a", 0.9, 80), "a"),
    ):
        state.finish(found)
        assert state.best == best
    assert (state.done, state.failed) == (5, 1)


def test_a_reporter_that_nobody_watches_tells_all_in_plain_lines():
    teller, said = reporter(terminal=False)
    with teller.stage("calibration"), teller.shards("calibration", 3) as on_shard:
        for done in (1, 2, 3):
            on_shard(done, 3, 64)
    teller.complete([row("a", 0.75, 10)], 3)
    state = SweepState(total=2, workers=1)
    with teller.sweep(state) as refresh:
        state.finish(row("b", 0.5, 10))
        refresh()
        state.finish(row("c", 0.0, 0, status="failed"))
        refresh()
    lines = said.getvalue().splitlines()
    assert lines[0] == "calibration ..."
    assert lines[1].startswith("calibration: 1 of 3 shards")
    # Lines come ten seconds apart: of shards and trials that follow at once, only the end is told.
    assert lines[2].startswith("calibration: ")
    assert "shards" not in lines[2]
    assert lines[3] == "1 of 3 trials were complete already"
    assert lines[4:] == ["trials: 1 done, 0 running, 1 failed, of 2, best 75.00% on all scored images (a), 0 s left"]
    assert "\x1b" not in said.getvalue()


def test_in_a_terminal_shards_and_trials_are_bars():
    teller, said = reporter(terminal=True)
    with teller.shards("second moments", 4) as on_shard:
        on_shard(4, 4, 256)
    state = SweepState(total=1, workers=1)
    with teller.sweep(state) as refresh:
        state.finish(row("b", 0.5, 10))
        refresh()
    text = said.getvalue()
    assert "second moments" in text
    assert "4 of 4 shards" in text
    assert "best 50.00% on all scored images (b)" in text
    assert "━" in text


def test_time_left_falls_with_the_clock_and_is_by_the_trials_at_a_time():
    clock = Clock()
    state = SweepState(total=6, workers=2, clock=clock)
    clock.now += 325
    assert state.seconds_left is None
    state.finish({**row("a", 0.5, 10), "seconds_total": 80.0})
    assert state.seconds_left == pytest.approx(80 * 5 / 2)
    clock.now += 50
    assert state.seconds_left == pytest.approx(200 - 50)
    clock.now += 500
    assert state.seconds_left == 0.0
    state.finish({**row("b", 0.5, 10), "seconds_total": 100.0})
    assert state.seconds_left == pytest.approx(90 * 4 / 2)


def test_a_line_of_unchanged_counts_comes_each_minute():
    clock, said = Clock(), io.StringIO()
    teller = ProgressReporter(Console(file=said, width=160, highlight=False, force_terminal=False), clock=clock)
    state = SweepState(total=6, workers=2, running=2, clock=clock)
    with teller.sweep(state) as refresh:
        for _ in range(13):  # at 0, 10, ... 120 seconds
            refresh()
            clock.now += 10
        assert len(said.getvalue().splitlines()) == 3
        state.finish({**row("a", 0.5, 10), "seconds_total": 80.0})
        refresh()
        assert len(said.getvalue().splitlines()) == 4
