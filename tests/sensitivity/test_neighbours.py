"""Groups that cannot be measured are weighed by their neighbours, and the curves and the plan say so."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from small_nets import batches, build, example

import cleanai_ray as cleanai
from cleanai_ray.errors import PruningError
from cleanai_ray.importance.curves import GroupCurve, SensitivityCurves
from cleanai_ray.sensitivity import elimination
from cleanai_ray.sensitivity.elimination import Reading
from cleanai_ray.sensitivity.neighbours import estimate, fallback_order, probed_numbers
from cleanai_ray.sensitivity.probe import Probe
from cleanai_ray.sensitivity.table import curve_rows
from cleanai_ray.storage import schemas

IMAGES = [images for images, _ in batches(sizes=(40, 40))]


def curve(name: str, units: int, slope: float, probe: float, **fields) -> GroupCurve:
    """Errors and divergences grow in proportion to the share of units removed."""
    shares = np.arange(1, units) / units
    numbers = probed_numbers(units, [0.25, 0.75])
    return GroupCurve(
        name=name,
        num_channels=units,
        num_blocks=1,
        order=tuple(range(units - 1)),
        errors=tuple((slope * shares).tolist()),
        probes=tuple((number, probe * number / units) for number in numbers),
        **fields,
    )


def unmeasured(name: str, units: int) -> GroupCurve:
    return GroupCurve(
        name=name, num_channels=units, num_blocks=1, order=tuple(range(units - 1)), errors=(), estimated="no memory"
    )


def test_an_estimate_lies_between_the_nearest_groups_at_the_same_share() -> None:
    first, last = curve("a", 8, slope=1.0, probe=0.1), curve("d", 16, slope=4.0, probe=0.7)
    found = estimate([first, unmeasured("b", 4), unmeasured("c", 32), last], [0.25, 0.75])
    assert found[0] is first
    assert found[3] is last
    # One third and two thirds of the way from slope 1 to 4, and from 0.1 to 0.7 nats at all units.
    assert found[1].errors == pytest.approx(2 * np.arange(1, 4) / 4)
    assert found[2].errors == pytest.approx(3 * np.minimum(np.arange(1, 32) / 32, 1), rel=0.1)
    assert found[1].probes == ((1, pytest.approx(0.3 / 4)), (3, pytest.approx(0.3 * 3 / 4)))
    assert found[2].probes == ((8, pytest.approx(0.5 / 4)), (24, pytest.approx(0.5 * 3 / 4)))
    assert found[1].estimated == "no memory"
    assert (np.diff(found[2].harm) >= 0).all()


def test_beyond_the_last_measured_group_its_curve_stands_and_a_group_of_one_unit_tells_nothing() -> None:
    single = GroupCurve(name="one", num_channels=1, num_blocks=1, order=(), errors=())
    measured = curve("b", 8, slope=1.0, probe=0.1)
    found = estimate([unmeasured("a", 8), measured, single, unmeasured("c", 8)], [0.25, 0.75])
    for each in (found[0], found[3]):
        assert each.errors == pytest.approx(measured.errors)
        assert dict(each.probes) == pytest.approx(dict(measured.probes))


def test_a_group_that_was_eliminated_keeps_its_own_errors() -> None:
    own = curve("b", 8, slope=5.0, probe=0.0, estimated="not finite")
    (found, _) = estimate([own, curve("a", 8, slope=1.0, probe=0.1)], [0.25, 0.75])
    assert found.errors == own.errors
    assert dict(found.probes) == pytest.approx({2: 0.1 / 4, 6: 0.1 * 3 / 4})


def test_the_fallback_removes_first_what_its_readers_hear_least() -> None:
    weight = torch.tensor([[[3.0], [1.0], [1.0], [1.0]]], dtype=torch.float64)
    covariance = torch.diag(torch.tensor([1.0, 4.0, float("nan"), 25.0], dtype=torch.float64))
    entry = Reading(weight=weight, covariance=covariance, units=torch.arange(4)[:, None])
    assert fallback_order([entry]) == (2, 1, 0)  # 0, 4, 9 and 25.
    pairs = Reading(weight=weight, covariance=covariance, units=torch.tensor([[0, 1], [2, 3]]))
    assert fallback_order([pairs]) == (0,)


@pytest.mark.parametrize("what", ["elimination", "not finite", "probe", "infinite probe"])
def test_one_group_that_fails_leaves_all_others_as_they_are_and_the_plan_says_so(what: str, monkeypatch) -> None:
    model = build("residual")
    measured = cleanai.measure_sensitivity(model, example(), IMAGES)
    spoilt = "conv1"
    width = measured[spoilt].num_channels  # No other group of this network is as wide.
    own_quadratic, own_probe = elimination._quadratic, Probe.measure

    def quadratic(reading, ridge, device):
        found = own_quadratic(reading, ridge, device)
        if len(reading.units) == width and what == "elimination":
            raise torch.linalg.LinAlgError("the matrix is singular")
        spoils = len(reading.units) == width and what == "not finite"
        return replace(found, energy=found.energy * torch.nan) if spoils else found

    def probe(self, readings, units):
        value = own_probe(self, readings, units)
        if len(next(iter(readings.values())).units) == width and what == "probe":
            raise RuntimeError("out of memory")
        return float("inf") if len(next(iter(readings.values())).units) == width and "probe" in what else value

    monkeypatch.setattr(elimination, "_quadratic", quadratic)
    monkeypatch.setattr(Probe, "measure", probe)
    curves = cleanai.measure_sensitivity(model, example(), IMAGES)
    found = curves[spoilt]
    assert list(curves.groups) == list(measured.groups)
    assert all(curves[name] == each for name, each in measured.groups.items() if name != spoilt)
    reason = {
        "elimination": "the matrix is singular",
        "not finite": "its joint elimination gives errors that are not finite",
        "probe": "out of memory",
        "infinite probe": "without some of its channels, the model's output is not finite",
    }[what]
    note = f"the sensitivity of layer 'conv1' is estimated from its neighbours': {reason}"
    assert curves.notes == (note,)
    assert len(found.order) == len(found.errors) == width - 1
    assert np.isfinite(found.harm).all()
    assert (found.harm > 0).any()
    if "probe" in what:
        assert (found.order, found.errors) == (measured[spoilt].order, measured[spoilt].errors)
    assert SensitivityCurves.from_json(curves.to_json()) == curves
    plan = cleanai.prune(model, example(), method="reconstruction", budget={"macs": 0.6}, curves=curves).plan
    assert note in plan.warnings
    assert "estimated from its neighbours" in " ".join(plan.explain().split())
    assert not cleanai.prune(model, example(), method="magnitude", ratio=0.3, curves=curves).plan.warnings
    table = schemas.to_table(curve_rows(curves), schemas.SENSITIVITY).to_pylist()
    assert {row["estimated"] for row in table if row["group"] == spoilt} == {reason}
    assert {row["estimated"] for row in table if row["group"] != spoilt} == {None}
    assert all(row["divergence_measured"] is None for row in table if row["group"] == spoilt)


def test_if_no_group_can_be_measured_the_first_reason_is_given(monkeypatch) -> None:
    def quadratic(reading, ridge, device):
        raise RuntimeError("the disk is full")

    monkeypatch.setattr(elimination, "_quadratic", quadratic)
    with pytest.raises(PruningError, match="sensitivity of no layer can be measured; of 'conv1': the disk is full"):
        cleanai.measure_sensitivity(build("plain"), example(), IMAGES)


def test_curves_of_an_earlier_version_are_those_of_measured_groups() -> None:
    document = json.loads(SensitivityCurves(groups={"a": curve("a", 8, slope=1.0, probe=0.1)}).to_json())
    for group in document["groups"]:
        del group["estimated"]
    assert SensitivityCurves.from_json(json.dumps(document))["a"].estimated is None
