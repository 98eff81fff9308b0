"""The winner's curse: as simulated from one study, against what really happens over many."""

from __future__ import annotations

import numpy as np
import pytest

from cleanai_ray.analysis.optimism import winners_curse


def test_the_best_of_equal_trials_is_as_lucky_as_the_largest_of_so_many_draws() -> None:
    # The largest of 50 standard normal values is 2.249 on average.
    seen = np.full(50, 0.9)
    assert winners_curse(seen, np.full(50, 0.004)) == pytest.approx(2.249 * 0.004, rel=0.03)


def test_a_winner_that_stands_out_is_not_lucky() -> None:
    assert winners_curse(np.array([0.95, 0.5, 0.4]), np.full(3, 0.003)) == pytest.approx(0.0, abs=2e-4)
    assert winners_curse(np.array([0.95]), np.full(1, 0.01)) == 0.0


@pytest.mark.parametrize("spread", [0.0, 0.003, 0.02])
def test_the_simulated_excess_is_that_of_many_studies(spread: float) -> None:
    generator, error = np.random.default_rng(5), 0.004
    real, simulated = [], []
    for _ in range(60):
        truth = 0.9 + spread * generator.standard_normal(40)
        seen = truth + error * generator.standard_normal(40)
        real.append((seen - truth)[seen.argmax()])
        simulated.append(winners_curse(seen, np.full(40, error)))
    assert np.mean(simulated) == pytest.approx(np.mean(real), abs=0.0012)
