"""Batches in 16 bits: their errors, whatever their range, and what is not touched."""

from __future__ import annotations

import pytest
import torch
from old_torch import VERSION
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from cleanai_ray.nn.half import HalfBatches
from cleanai_ray.repair.images import walk


def values(scale: float, kind: torch.dtype) -> Tensor:
    """Numbers of both signs over 12 powers of ten, and zeros."""
    spread = torch.logspace(-12, 0, 500, dtype=torch.float64)
    signs = torch.where(torch.arange(500) % 3 == 0, -1.0, 1.0)
    return torch.cat([spread * signs * scale, torch.zeros(12)]).reshape(8, 64).to(kind)


@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [1.0, 3e-5, 65504.0, 1e30, 3e38, 1e-30, 1e-38])
def test_the_error_is_bounded_by_the_value_and_the_largest_one_at_any_scale(scale: float, kind: torch.dtype) -> None:
    batch = values(scale, kind)
    (found,) = HalfBatches([batch])
    assert found.dtype == kind
    exact, largest = batch.double(), float(batch.abs().max())
    # Below the least normal number of float32, the type itself has an absolute error.
    allowed = 2.0**-11 * exact.abs() + 2.0**-39 * largest + (2.0**-149 if scale > 1e-30 else 2.0**-126 * 2.0**-11)
    assert ((found.double() - exact).abs() <= allowed).all()


def test_half_of_the_memory_is_kept() -> None:
    kept = HalfBatches([torch.randn(4, 8) for _ in range(3)])._kept
    assert [each.value.element_size() for each in kept] == [2, 2, 2]


@pytest.mark.parametrize(
    "batch", [torch.arange(6), torch.randn(4).half(), torch.randn(4).bfloat16(), torch.zeros(0, 3)]
)
def test_integers_short_types_and_nothing_stay_as_they_are(batch: Tensor) -> None:
    (found,) = HalfBatches([batch])
    assert found is batch


def test_zeros_and_what_is_not_finite_stay_what_they_are() -> None:
    found = HalfBatches([torch.zeros(3), torch.tensor([1.0, float("inf"), float("nan")])])
    assert torch.equal(found[0], torch.zeros(3))
    assert found[1].isinf().tolist() == [False, True, False]
    assert found[1].isnan().tolist() == [False, False, True]


def test_batches_are_a_sequence() -> None:
    batches = [torch.full((2,), float(number)) for number in range(5)]
    found = HalfBatches(iter(batches))
    assert len(found) == 5
    assert torch.equal(torch.cat(list(found)), torch.cat(batches))
    assert [float(batch[0]) for batch in found[1:3]] == [1.0, 2.0]
    assert torch.equal(found[-1], batches[4])


class Travelling(TorchDispatchMode):
    """Notes the type of every tensor that is copied from one device to another."""

    def __init__(self) -> None:
        super().__init__()
        self.kinds: list[torch.dtype] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        target = (kwargs or {}).get("device")
        if func is torch.ops.aten._to_copy.default and target not in (None, args[0].device) and args[0].ndim:
            self.kinds.append(args[0].dtype)
        return func(*args, **(kwargs or {}))


@pytest.mark.skipif(VERSION < (2, 7), reason="an older torch asks the driver even for tensors that nobody stores")
def test_batches_travel_in_16_bits_in_both_directions() -> None:
    with FakeTensorMode(allow_non_fake_inputs=True), Travelling() as travelled:
        made = [torch.empty(4, 8, device="cuda") for _ in range(3)]
        kept = HalfBatches(made, torch.device("cpu"))
        assert [each.value.device.type for each in kept._kept] == ["cpu"] * 3
        assert travelled.kinds == [torch.float16] * 3
        again = list(kept.on(torch.device("cuda")))
    assert travelled.kinds == [torch.float16] * 6
    assert [(each.device.type, each.dtype) for each in again] == [("cuda", torch.float32)] * 3


def test_a_walk_takes_them_to_the_model() -> None:
    batches = [torch.randn(3, 5), torch.randn(2, 5)]
    kept = HalfBatches(batches, torch.device("cpu"))
    found = list(walk(kept, torch.nn.Linear(5, 2)))
    assert [samples for samples, _ in found] == [range(3), range(3, 5)]
    for (_, values), batch in zip(found, kept, strict=True):
        assert torch.equal(values, batch)
