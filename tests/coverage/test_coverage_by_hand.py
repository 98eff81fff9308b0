"""The definitions of the coverage metrics on numbers small enough to follow on paper."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from cleanai_ray.registry import METRICS
from cleanai_ray.statistics import LayerStatistics, calibrate

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
