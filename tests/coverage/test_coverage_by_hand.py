"""The coverage metrics on numbers small enough to check by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from cleanai_ray import calibrate
from cleanai_ray.coverage.base import computable_metrics, needs_sections
from cleanai_ray.errors import CalibrationError
from cleanai_ray.registry import METRICS
from cleanai_ray.statistics import LayerStatistics

# Two samples of three channels at two positions. The channel means of the samples, s[i,c], are
# channel 0: 1, 3; channel 1: -1, 2; channel 2: 0, 0. The largest magnitude of the layer is 5.
IMAGES = torch.tensor(
    [
        [[0.0, 2.0], [-4.0, 2.0], [0.0, 0.0]],
        [[1.0, 5.0], [2.0, 2.0], [3.0, -3.0]],
    ]
).reshape(2, 3, 1, 2)

BY_HAND = {
    "normalized_mean": [2.0 / 5, 0.5 / 5, 0.0],
    "frequency": [1.0, 0.5, 0.0],
    "mean_absolute": [8 / 4, 10 / 4, 6 / 4],
    "combined": [(0.4 * 1.0) ** 0.5, (0.1 * 0.5) ** 0.5, 0.0],
    "apoz": [3 / 4, 3 / 4, 1 / 4],
}


# The layer's range is [-4, 5]; three sections are 3 wide: [-4, -1), [-1, 2) and [2, 5]. Counts of the channels are
# channel 0 (0, 2, 1, 5): 0, 2, 2; channel 1 (-4, 2, 2, 2): 1, 0, 3; channel 2 (0, 0, 3, -3): 1, 2, 1.
LN2, LN3 = math.log(2), math.log(3)
BY_HAND_IN_SECTIONS = {
    "k_multisection": [2 / 3, 2 / 3, 1.0],
    "entropy": [LN2 / LN3, (2 * LN2 - 0.75 * LN3) / LN3, 1.5 * LN2 / LN3],
}


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("metric", BY_HAND_IN_SECTIONS)
def test_definitions_in_sections(metric: str, batch: int) -> None:
    model = nn.Sequential(nn.Conv2d(3, 1, 1), nn.Flatten())
    found = METRICS.get(metric)(calibrate(model, IMAGES.split(batch), sections=3).inputs["0"])
    torch.testing.assert_close(found, torch.tensor(BY_HAND_IN_SECTIONS[metric], dtype=torch.float64))


@pytest.mark.parametrize("metric", BY_HAND_IN_SECTIONS)
def test_sections_that_were_not_counted_are_an_error_that_says_what_to_do(metric: str) -> None:
    assert needs_sections(metric)
    with pytest.raises(CalibrationError, match=f"metric '{metric}' .*; calibrate with sections=64"):
        METRICS.get(metric)(statistics())


def test_the_other_metrics_need_no_second_pass() -> None:
    assert {name for name in METRICS.names() if needs_sections(name)} == set(BY_HAND_IN_SECTIONS)
    assert not needs_sections(None)
    assert set(computable_metrics(statistics())) == set(METRICS.names()) - set(BY_HAND_IN_SECTIONS)


@pytest.mark.parametrize(
    ("top_k", "expected"),
    [
        (1, [1.0, 0.0, 0.0]),  # 1, -1, 0 and 3, 2, 0: channel 0 is the strongest of both samples.
        (2, [1.0, 0.5, 0.5]),
        (3, [1.0, 0.5, 0.5]),  # Three of three would be all: two are the most.
        (10, [1.0, 0.5, 0.5]),
    ],
)
def test_top_k_counts_samples_in_which_a_channel_is_among_the_strongest(top_k: int, expected: list[float]) -> None:
    model = nn.Sequential(nn.Conv2d(3, 1, 1), nn.Flatten())
    found = calibrate(model, [IMAGES], top_k=top_k).inputs["0"]
    assert METRICS.get("top_k")(found).tolist() == expected


def test_channels_that_tie_at_the_edge_of_the_k_strongest_do_not_count() -> None:
    model = nn.Sequential(nn.Conv2d(4, 1, 1), nn.Flatten())
    images = torch.tensor([[5.0, 0.0, 0.0, 0.0], [1.0, 4.0, 1.0, 0.0], [2.0, 2.0, 1.0, 0.0]]).reshape(3, 4, 1, 1)
    # Sample 0: one channel, and three equals for one place. Sample 1: channel 1, and two for one. Sample 2: 0 and 1.
    found = METRICS.get("top_k")(calibrate(model, [images], top_k=2).inputs["0"])
    assert found.tolist() == [2 / 3, 2 / 3, 0.0, 0.0]


def test_the_only_channel_of_a_layer_is_its_strongest() -> None:
    model = nn.Sequential(nn.Conv2d(1, 1, 1), nn.Flatten())
    assert METRICS.get("top_k")(calibrate(model, [torch.zeros(2, 1, 1, 1)]).inputs["0"]).tolist() == [1.0]


def statistics(threshold: float = 0.0, batch: int = 2) -> LayerStatistics:
    model = nn.Sequential(nn.Conv2d(3, 1, 1), nn.Flatten())
    return calibrate(model, IMAGES.split(batch), threshold=threshold).inputs["0"]


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("metric", BY_HAND)
def test_definitions(metric: str, batch: int) -> None:
    found = METRICS.get(metric)(statistics(batch=batch))
    torch.testing.assert_close(found, torch.tensor(BY_HAND[metric], dtype=torch.float64))


@pytest.mark.parametrize(
    ("threshold", "expected"),
    [
        (-2.0, [1.0, 1.0, 1.0]),
        (-1.0, [1.0, 0.5, 1.0]),
        (1.0, [0.5, 0.5, 0.0]),
        (2.0, [0.5, 0.0, 0.0]),
        (3.0, [0, 0, 0]),
    ],
)
def test_frequency_counts_samples_above_the_threshold(threshold: float, expected: list[float]) -> None:
    assert METRICS.get("frequency")(statistics(threshold)).tolist() == expected


def test_frequency_is_not_whether_the_mean_is_positive() -> None:
    """The mean of channel 1 is positive, but one of its two samples is not."""
    assert METRICS.get("frequency")(statistics())[1] == 0.5


def test_mean_absolute_is_not_the_absolute_mean() -> None:
    """Channel 2 averages to zero, though its activations are not zero."""
    assert METRICS.get("normalized_mean")(statistics())[2] == 0
    assert METRICS.get("mean_absolute")(statistics())[2] == 1.5


def test_a_negative_mean_gives_combined_zero_and_no_root_of_a_negative_number() -> None:
    model = nn.Sequential(nn.Conv2d(1, 1, 1), nn.Flatten())
    # Means -3 and 1: the average is -1, and one of two samples is active.
    found = calibrate(model, [torch.tensor([-3.0, 1.0]).reshape(2, 1, 1, 1)]).inputs["0"]
    assert METRICS.get("frequency")(found).tolist() == [0.5]
    assert METRICS.get("combined")(found).tolist() == [0.0]


def test_normalisation_is_by_the_layer_and_not_by_the_channel() -> None:
    model = nn.Sequential(nn.Conv2d(2, 1, 1), nn.Flatten())
    images = torch.tensor([[1.0, -8.0], [3.0, -8.0]]).reshape(2, 2, 1, 1)
    found = METRICS.get("normalized_mean")(calibrate(model, [images]).inputs["0"])
    assert found.tolist() == [0.25, -1.0]
