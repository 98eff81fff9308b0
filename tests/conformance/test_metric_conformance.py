"""Every registered coverage metric, against a slow computation over stored activations."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import reduce
from operator import add
from typing import Any

import pytest
import torch
from small_nets import batches, build
from torch import Tensor, nn

from cleanai_ray import calibrate
from cleanai_ray.registry import METRICS
from cleanai_ray.statistics import ActivationStatistics, count_sections

Stored = list[list[list[float]]]
"""x[i][c][p]: sample, channel, position."""

Observed = tuple[nn.Module, list, dict[str, Stored], ActivationStatistics]
"""A model, its batches, what its layers received of them, and the statistics of that."""

THRESHOLD, TOP_K, SECTIONS = 0.25, 2, 8
OPTIONS: dict[str, Any] = {"threshold": THRESHOLD, "top_k": TOP_K, "sections": SECTIONS}


def sample_means(x: Stored, channel: int) -> list[float]:
    return [sum(sample[channel]) / len(sample[channel]) for sample in x]


def positions(x: Stored, channel: int) -> list[float]:
    return [value for sample in x for value in sample[channel]]


def slow_normalized_mean(x: Stored, channel: int, threshold: float) -> float:
    largest = max(abs(value) for sample in x for row in sample for value in row)
    means = sample_means(x, channel)
    return sum(means) / len(means) / largest if largest else 0.0


def slow_frequency(x: Stored, channel: int, threshold: float) -> float:
    return sum(1 for mean in sample_means(x, channel) if mean > threshold) / len(x)


def slow_mean_absolute(x: Stored, channel: int, threshold: float) -> float:
    values = positions(x, channel)
    return sum(abs(value) for value in values) / len(values)


def slow_combined(x: Stored, channel: int, threshold: float) -> float:
    mean = max(slow_normalized_mean(x, channel, threshold), 0.0)
    return math.sqrt(mean * slow_frequency(x, channel, threshold))


def slow_apoz(x: Stored, channel: int, threshold: float) -> float:
    values = positions(x, channel)
    return 1.0 - sum(1 for value in values if not value > 0) / len(values)


def slow_top_k(x: Stored, channel: int, threshold: float) -> float:
    """Samples in which fewer than k others are at least as strong; k is at most all channels but one."""
    number = min(TOP_K, len(x[0]) - 1) if len(x[0]) > 1 else 1
    hits = 0
    for sample in x:
        strengths = [sum(row) / len(row) for row in sample]
        others = [value for other, value in enumerate(strengths) if other != channel and value >= strengths[channel]]
        hits += len(others) < number
    return hits / len(x)


def slow_histogram(x: Stored, channel: int) -> list[int]:
    """Positions in each section [low + j w, low + (j + 1) w), the largest value in the last one."""
    whole = [value for sample in x for row in sample for value in row]
    low, high = min(whole), max(whole)
    counts = [0] * SECTIONS
    for value in positions(x, channel):
        section = 0
        while section < SECTIONS - 1 and low < high and value >= low + (high - low) * (section + 1) / SECTIONS:
            section += 1
        counts[section] += 1
    return counts


def slow_k_multisection(x: Stored, channel: int, threshold: float) -> float:
    return sum(1 for count in slow_histogram(x, channel) if count) / SECTIONS


def slow_entropy(x: Stored, channel: int, threshold: float) -> float:
    counts = slow_histogram(x, channel)
    shares = [count / sum(counts) for count in counts if count]
    return sum(-share * math.log(share) for share in shares) / math.log(SECTIONS)


REFERENCES: dict[str, Callable[[Stored, int, float], float]] = {
    "normalized_mean": slow_normalized_mean,
    "frequency": slow_frequency,
    "mean_absolute": slow_mean_absolute,
    "combined": slow_combined,
    "apoz": slow_apoz,
    "top_k": slow_top_k,
    "k_multisection": slow_k_multisection,
    "entropy": slow_entropy,
}
RANGES = {
    "normalized_mean": (-1.0, 1.0),
    "frequency": (0.0, 1.0),
    "mean_absolute": (0.0, math.inf),
    "combined": (0.0, 1.0),
    "apoz": (0.0, 1.0),
    "top_k": (0.0, 1.0),
    "k_multisection": (1 / SECTIONS, 1.0),
    "entropy": (0.0, 1.0),
}


def unreferenced() -> set[str]:
    """Registered metrics that this file does not check."""
    return set(METRICS.names()) - (REFERENCES.keys() & RANGES.keys())


def store(model: nn.Module, data: list) -> dict[str, Stored]:
    """Everything that each Conv2d and Linear receives."""
    kept: dict[str, list[Tensor]] = {}
    handles = [
        module.register_forward_hook(
            lambda _, inputs, output, name=name: kept.setdefault(name, []).append(inputs[0].clone())
        )
        for name, module in model.named_modules()
        if isinstance(module, (nn.Conv2d, nn.Linear))
    ]
    with torch.no_grad():
        for images, _ in data:
            model(images)
    for handle in handles:
        handle.remove()
    whole = {name: torch.cat(values) for name, values in kept.items()}
    return {name: value.reshape(*value.shape[:2], -1).tolist() for name, value in whole.items()}


@pytest.fixture(scope="module", params=["plain", "residual", "depthwise", "concat", "flattened"])
def observed(request: pytest.FixtureRequest) -> Observed:
    model, data = build(request.param), batches(sizes=(5, 7, 4))
    return model, data, store(model, data), calibrate(model, data, **OPTIONS)


def test_every_metric_has_a_reference_here() -> None:
    assert unreferenced() == set(), "add a slow reference and a range of the new metric to this file"


def test_a_metric_without_a_reference_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    METRICS.names()
    for attribute in ("_values", "_summaries"):
        monkeypatch.setattr(METRICS, attribute, getattr(METRICS, attribute).copy())
    METRICS.register("newest")(lambda statistics: statistics.maximum)
    assert unreferenced() == {"newest"}


@pytest.mark.parametrize("metric", METRICS.names())
def test_it_equals_the_slow_computation(metric: str, observed: Observed) -> None:
    _, _, stored, statistics = observed
    assert stored.keys() == statistics.inputs.keys()
    for layer, x in stored.items():
        found = METRICS.get(metric)(statistics.inputs[layer])
        expected = [REFERENCES[metric](x, channel, THRESHOLD) for channel in range(len(x[0]))]
        assert found.dtype == torch.float64
        torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("metric", METRICS.names())
def test_it_tells_channels_apart(metric: str, observed: Observed) -> None:
    values = torch.cat([METRICS.get(metric)(layer) for layer in observed[3].inputs.values()])
    assert values.unique().numel() >= 3


@pytest.mark.parametrize("metric", METRICS.names())
def test_shards_give_what_one_pass_gives(metric: str, observed: Observed) -> None:
    model, data, _, whole = observed
    merged = reduce(add, [calibrate(model, [batch], threshold=THRESHOLD, top_k=TOP_K) for batch in reversed(data)])
    counted = [count_sections(model, [batch], merged.ranges, sections=SECTIONS) for batch in reversed(data)]
    merged = merged.with_histograms(reduce(add, counted))
    for layer, statistics in whole.inputs.items():
        torch.testing.assert_close(
            METRICS.get(metric)(merged.inputs[layer]), METRICS.get(metric)(statistics), rtol=1e-9, atol=1e-12
        )


@pytest.mark.parametrize("metric", METRICS.names())
def test_it_stays_in_its_range(metric: str, observed: Observed) -> None:
    low, high = RANGES[metric]
    for statistics in observed[3].inputs.values():
        found = METRICS.get(metric)(statistics)
        assert found.shape == (statistics.num_channels,)
        assert ((found >= low) & (found <= high)).all()


@pytest.mark.parametrize("metric", METRICS.names())
def test_a_layer_that_receives_nothing_but_zeros(metric: str) -> None:
    model = build("plain")
    with torch.no_grad():
        model.bn1.weight.zero_()
        model.bn1.bias.fill_(-1.0)
    data = batches(sizes=(16,))
    found = METRICS.get(metric)(calibrate(model, data, top_k=TOP_K, sections=SECTIONS).inputs["conv2"])
    x = store(model, data)["conv2"]
    assert all(value == 0 for sample in x for row in sample for value in row)
    assert found.tolist() == [REFERENCES[metric](x, channel, 0.0) for channel in range(6)]


@pytest.mark.parametrize("metric", METRICS.names())
def test_it_does_not_change_the_statistics(metric: str) -> None:
    statistics = calibrate(build("plain"), batches(), sections=SECTIONS)
    before = statistics.to_bytes()
    METRICS.get(metric)(statistics.inputs["conv2"])
    assert statistics.to_bytes() == before
