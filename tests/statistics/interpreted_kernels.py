"""The fused kernels against the plain reduction, in Triton's interpreter: TRITON_INTERPRET=1 python THIS_FILE."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from cleanai_ray.statistics.fused_sums import FusedSums, check_kernels
from cleanai_ray.statistics.layer_sums import LayerSums, sums_of

CPU = torch.device("cpu")
THRESHOLD, TOP_K = 0.05, 3


class Counting:
    """The kernels, and how often each was launched."""

    def __init__(self, kernels: Any) -> None:
        self._kernels = kernels
        self.launches: list[str] = []

    def __getattr__(self, name: str) -> Any:
        if name != "ENTRY":
            self.launches.append(name)
        return getattr(self._kernels, name)


def assert_equal(found: LayerSums, expected: LayerSums) -> None:
    assert (found.num_samples, found.num_positions) == (expected.num_samples, expected.num_positions)
    for row, (mine, other) in enumerate(zip(found.totals, expected.totals, strict=True)):
        if row in (4, 5, 6):  # counts: of active samples, of positive positions, and of samples with a strong channel
            assert torch.equal(mine, other), row
        else:  # sums of numbers of both signs, to the precision of float32
            assert torch.allclose(mine, other, rtol=1e-5, atol=1e-5 * float(other.abs().max())), row
    assert torch.equal(found.minimum, expected.minimum.float())
    assert torch.equal(found.maximum, expected.maximum.float())


def layouts() -> dict[str, Tensor]:
    """Activations [samples, channels, positions] as layers of every kind receive them."""
    images = torch.randn(3, 33, 5, 7)
    return {
        "images": images.flatten(2),
        "channels last": images.contiguous(memory_format=torch.channels_last).flatten(2),
        "float16, channels last": images.half().contiguous(memory_format=torch.channels_last).flatten(2),
        "bfloat16": images.bfloat16().flatten(2),
        "float64": images.double().flatten(2),
        "tokens": torch.randn(4, 9, 20).transpose(1, 2),
        "features": torch.randn(6, 70).unsqueeze(-1),
        "one channel": torch.randn(2, 1, 11),
        "two channels": torch.randn(2, 2, 3),
        "every other pixel": images[:, :, ::2, ::2].flatten(2),
        "ties": torch.ones(2, 5, 4),
        "silence": torch.zeros(2, 5, 4),
        "long rows": torch.randn(1, 3, 2500),
    }


def main() -> None:
    torch.manual_seed(0)
    check_kernels(CPU)
    values = layouts()
    fused = FusedSums(CPU, THRESHOLD, TOP_K)
    counting = fused._kernels = Counting(fused._kernels)
    for scale in (1, 2):
        for name, value in values.items():
            fused.add(("inputs", name), scale * value)
    found = fused.sums()
    assert counting.launches.count("reduce_positions") == 2 * len(values)
    assert counting.launches.count("find_strongest") == counting.launches.count("add_samples")
    # Twice a batch, and once for each time the space for what waits was made larger.
    assert counting.launches.count("add_samples") <= 2 + 5, counting.launches
    for name, value in values.items():
        expected = sums_of(value, THRESHOLD, TOP_K) + sums_of(2 * value, THRESHOLD, TOP_K)
        assert_equal(found["inputs", name], expected)
    counting.launches.clear()
    for name, value in values.items():
        fused.add(("inputs", name), value)
    fused.sums()
    assert len(counting.launches) == len(values) + 2
    broken = FusedSums(CPU, THRESHOLD, TOP_K)
    broken.add(("inputs", "nan"), torch.tensor([[[1.0, float("nan")], [2.0, 3.0]]]))
    squares = broken.sums()["inputs", "nan"].totals[1]
    assert squares.isnan().tolist() == [True, False]


if __name__ == "__main__":
    main()
