"""Calibration in bfloat16: what layers receive is rounded, sums over it are not."""

from __future__ import annotations

import pytest
import torch
from small_nets import batches, build
from torch import Tensor, nn

from cleanai_ray import calibrate
from cleanai_ray.errors import CalibrationError
from cleanai_ray.repair.moments import collect_moments
from cleanai_ray.statistics import count_sections


class Watching(nn.Module):
    """Notes in what type and layout its input comes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 3, 3)
        self.head = nn.Linear(3, 4)
        self.seen: list[tuple[torch.dtype, bool, torch.dtype]] = []

    def forward(self, images: Tensor) -> Tensor:
        found = self.conv(images)
        self.seen.append((images.dtype, images.is_contiguous(memory_format=torch.channels_last), found.dtype))
        return self.head(found.relu().mean(dim=(2, 3)))


def test_a_model_runs_in_bfloat16_with_the_channels_last_and_keeps_its_weights() -> None:
    model, data = Watching(), batches(sizes=(3,))
    calibrate(model, data, gradients=True, precision="bfloat16")
    assert model.seen == [(torch.float32, True, torch.bfloat16)]
    assert {value.dtype for value in model.parameters()} == {torch.float32}
    calibrate(model, data)
    assert model.seen[1][2] == torch.float32


def test_statistics_are_those_of_the_rounded_activations_summed_without_rounding() -> None:
    model, data = build("plain").eval(), batches(sizes=(5, 7, 4))
    found = calibrate(model, data, precision="bfloat16", sections=8, gradients=True)
    received: list[Tensor] = []
    handle = model.conv2.register_forward_pre_hook(lambda _, inputs: received.append(inputs[0].double()))
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        for images, _ in data:
            model(images.contiguous(memory_format=torch.channels_last))
    handle.remove()
    values = torch.cat(received).transpose(0, 1).flatten(1)
    layer = found.inputs["conv2"]
    assert torch.allclose(layer.sum, values.sum(dim=1), rtol=1e-5)
    assert torch.allclose(layer.sum_squares, values.square().sum(dim=1), rtol=1e-5)
    assert torch.equal(layer.maximum, values.amax(dim=1))
    assert layer.histogram is not None
    # 16 samples summed in bfloat16 would be off by up to 2^-9; the rounding of single activations cancels out.
    exact = calibrate(model, data).inputs["conv2"]
    assert torch.allclose(layer.mean, exact.mean, rtol=0.02, atol=0.02 * float(exact.mean.abs().max()))
    assert not torch.equal(layer.sum, exact.sum)
    assert all(value.dtype == torch.float64 for value in found.gradients.values())


def test_second_moments_are_taken_in_the_same_precision() -> None:
    model = build("plain")
    images = torch.randn(40, 2, 8, 8)
    exact = collect_moments(model, [images], layers=["conv2"])["conv2"]
    found = collect_moments(model, [images], layers=["conv2"], precision="bfloat16")["conv2"]
    assert not torch.equal(found.scatter, exact.scatter)
    assert torch.allclose(found.scatter, exact.scatter, rtol=0.05, atol=0.02 * float(exact.scatter.max()))


def test_another_precision_is_refused() -> None:
    model, data = build("plain"), batches()
    for measure in (
        lambda: calibrate(model, data, precision="float16"),
        lambda: count_sections(model, data, {"inputs": {}, "outputs": {}}, sections=4, precision="float16"),
    ):
        with pytest.raises(CalibrationError, match="precision is 'float16'; allowed: float32, bfloat16"):
            measure()
