"""Sensitivity curves as values, and the order in which groups lose units by price."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cleanai_ray.errors import ArtifactError, PruningError
from cleanai_ray.importance.curves import GroupCurve, SensitivityCurves
from cleanai_ray.pruning.price_selection import removal_sequence

CURVE = GroupCurve(
    name="conv1", num_channels=10, num_blocks=2, order=(3, 0, 4, 1), errors=(0.1, 0.2, 0.4, 0.8), probes=((2, 0.5),)
)


@st.composite
def curves(draw: st.DrawFn) -> GroupCurve:
    units = draw(st.integers(2, 12))
    order = draw(st.permutations(range(units)))[:-1]
    errors = np.cumsum(draw(st.lists(st.floats(0, 1), min_size=units - 1, max_size=units - 1)))
    counts = draw(st.lists(st.integers(1, units - 1), unique=True, max_size=3))
    probes = tuple((count, draw(st.floats(0, 5))) for count in sorted(counts))
    blocks = draw(st.integers(1, 3))
    return GroupCurve(
        name="layer",
        num_channels=units * blocks,
        num_blocks=blocks,
        order=tuple(order),
        errors=tuple(errors.tolist()),
        probes=probes,
    )


@given(curves())
def test_curves_survive_their_file(curve: GroupCurve) -> None:
    text = SensitivityCurves(groups={"layer": curve}).to_json()
    assert SensitivityCurves.from_json(text)["layer"] == curve


@given(curves())
def test_harm_never_falls_and_prices_add_up_to_it(curve: GroupCurve) -> None:
    assert (np.diff(curve.harm) >= 0).all()
    prices = curve.prices(np.arange(curve.num_channels))
    assert len(prices) == curve.num_units - 1
    assert np.cumsum(prices) == pytest.approx(curve.harm, rel=1e-9, abs=1e-15)


@given(curves(), st.integers(0, 11))
def test_prices_of_a_group_that_lost_some_units_are_those_still_to_come(curve: GroupCurve, gone: int) -> None:
    gone = min(gone, len(curve.order))
    left = [unit for unit in range(curve.num_units) if unit not in curve.order[:gone]]
    kept = np.concatenate([np.asarray(left) + block * curve.num_units for block in range(curve.num_blocks)])
    assert curve.prices(kept) == pytest.approx(curve.prices(np.arange(curve.num_channels))[gone:], abs=1e-15)
    expected = sorted(left, key=lambda unit: (*curve.order, *set(range(12)).difference(curve.order)).index(unit))
    assert [left[place] for place in np.argsort(curve.ranks(kept))] == expected


def test_harm_is_what_was_measured_and_goes_on_by_the_tangent_of_the_power_law() -> None:
    # 0.5 nats at error 0.2 are 2.5 a unit; beyond, 1.5 times as much.
    assert CURVE.harm == pytest.approx([0.25, 0.5, 0.5 + 0.2 * 3.75, 0.5 + 0.6 * 3.75])
    unmeasured = GroupCurve(name="conv1", num_channels=3, num_blocks=1, order=(0, 1), errors=(0.25, 1.0))
    assert unmeasured.harm == pytest.approx([0.125, 1.0])


def test_between_two_probes_harm_is_linear_in_the_error() -> None:
    # 0.01 nats at 0.1 and 0.16 at 0.4: 0.5 nats a unit of error.
    curve = GroupCurve(
        name="c", num_channels=4, num_blocks=1, order=(0, 1, 2), errors=(0.1, 0.2, 0.4), probes=((1, 0.01), (3, 0.16))
    )
    assert curve.harm == pytest.approx([0.01, 0.06, 0.16])


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"format": "other", "groups": []}', '{"format": "cleanai-curves/1", "groups": [{"name": 1}]}'],
)
def test_a_file_that_holds_something_else_is_refused(text: str) -> None:
    with pytest.raises(ArtifactError, match="sensitivity curves cannot be read"):
        SensitivityCurves.from_json(text)


def test_a_group_without_a_curve_is_named() -> None:
    document = json.loads(SensitivityCurves(groups={"conv1": CURVE}).to_json())
    with pytest.raises(PruningError, match="no sensitivity curve for the group of layer 'conv2'"):
        SensitivityCurves.from_json(json.dumps(document))["conv2"]


@given(st.lists(st.lists(st.floats(0, 10), min_size=1, max_size=6), min_size=1, max_size=5), st.data())
def test_the_sequence_is_that_of_a_greedy_that_tries_every_group_anew(
    prices: list[list[float]], data: st.DataObject
) -> None:
    """A chain of layers, each with a group as its outputs: cost = sum of products of neighbouring widths."""
    names = [f"g{index}" for index in range(len(prices))]
    widths = {name: len(entry) + 1 for name, entry in zip(names, prices, strict=True)}
    caps = {name: data.draw(st.integers(0, len(entry)), label=name) for name, entry in zip(names, prices, strict=True)}

    def cost(counts: dict[str, int]) -> int:
        kept = [3, *(widths[name] - counts.get(name, 0) for name in names), 5]
        return sum(a * b for a, b in itertools.pairwise(kept))

    def saving(counts: dict[str, int], name: str) -> float:
        return cost(counts) - cost({**counts, name: counts.get(name, 0) + 1})

    arrays = {name: np.asarray(entry) for name, entry in zip(names, prices, strict=True)}
    counts: dict[str, int] = {}
    expected = []
    while True:
        open_groups = [name for name in names if counts.get(name, 0) < caps[name]]
        if not open_groups:
            break
        best = min(open_groups, key=lambda name: arrays[name][counts.get(name, 0)] / saving(counts, name))
        expected.append(best)
        counts[best] = counts.get(best, 0) + 1
    assert removal_sequence(arrays, caps, saving) == expected
