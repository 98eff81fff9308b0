from __future__ import annotations

import math

import pytest

from cleanai_ray.config.finetune import FineTuneSection
from cleanai_ray.training.schedule import learning_rates


def rates(steps_per_epoch: int, **fields: object) -> list[float]:
    section = FineTuneSection.model_validate({"learning_rate": 0.8, **fields})
    return learning_rates(section, steps_per_epoch)


def test_constant_stays() -> None:
    assert rates(3, epochs=2, scheduler="constant") == [0.8] * 6


def test_step_drops_tenfold_at_half_and_at_three_quarters() -> None:
    assert rates(2, epochs=4, scheduler="step") == pytest.approx([0.8] * 4 + [0.08] * 2 + [0.008] * 2)


def test_cosine_follows_half_a_period() -> None:
    # 0.4 * (1 + cos(0, 45, 90, 135 degrees))
    root = math.sqrt(0.5)
    assert rates(4, epochs=1, scheduler="cosine") == pytest.approx([0.8, 0.4 + 0.4 * root, 0.4, 0.4 - 0.4 * root])


def test_warm_up_of_one_and_a_half_epochs_rises_linearly_before_the_cosine() -> None:
    # 1.5 epochs of 2 steps: thirds of the peak; then one step at cos(0).
    assert rates(2, epochs=2, scheduler="cosine", warmup_epochs=1.5) == pytest.approx([0.8 / 3, 1.6 / 3, 0.8, 0.8])


def test_warm_up_longer_than_the_training_never_reaches_the_peak() -> None:
    assert rates(2, epochs=1, scheduler="cosine", warmup_epochs=2.0) == pytest.approx([0.2, 0.4])


def test_warm_up_of_one_step_has_the_peak_and_the_cosine_begins_after_it() -> None:
    # One step at the peak; then 0.4 * (1 + cos(0, 60, 120 degrees)).
    assert rates(4, epochs=1, scheduler="cosine", warmup_epochs=0.25) == pytest.approx([0.8, 0.8, 0.6, 0.2])


def test_step_drops_are_counted_from_the_first_warm_up_step() -> None:
    # 8 steps: drops at steps 4 and 6, whether the warm-up ends before, between or after them.
    assert rates(2, epochs=4, scheduler="step", warmup_epochs=1.0)[2:] == pytest.approx(
        [0.8] * 2 + [0.08] * 2 + [0.008] * 2
    )
    assert rates(2, epochs=4, scheduler="step", warmup_epochs=2.5)[5:] == pytest.approx([0.08] + [0.008] * 2)
    assert rates(2, epochs=4, scheduler="step", warmup_epochs=3.5)[7:] == pytest.approx([0.008])


def test_drops_between_two_steps_come_with_the_next_step() -> None:
    # 5 steps: 50 % and 75 % are 2.5 and 3.75 steps.
    assert rates(5, epochs=1, scheduler="step") == pytest.approx([0.8] * 3 + [0.08] + [0.008])
