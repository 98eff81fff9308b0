"""Differences that may be rounding: a cut is called wrong once it is wrong in float64, too.

A deep network whose layers are badly scaled makes rounding of float32 larger from layer to layer, up to the tolerance
and beyond. In float64 rounding begins 2e9 times smaller, and a channel in the wrong place is as wrong as before.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from cleanai_ray.graph.cutting import Cuts
from cleanai_ray.graph.silencing import Reading, is_close, read, silenced
from cleanai_ray.nn.copying import copied

_ROUNDED = (torch.float32, torch.float16, torch.bfloat16)

LARGEST = 0.1
"""Largest difference that is looked at again, as a share of the largest value; a wrong cut mostly makes larger ones."""


def judged_again(
    readings: tuple[Reading, Reading],
    models: tuple[nn.Module, nn.Module],
    inputs: Tensor,
    cuts: Cuts,
    parameters: Mapping[str, int],
    judge: Callable[[Reading, Reading], str | None],
) -> str | None:
    """Return where a cut model differs, like `difference`; where that may be rounding, both models run in float64.

    Args:
        readings: What is expected with the channels silent, and what was read after the cut.
        models: The model before the cut and after; they are left as they are.
        inputs: Their input.
        cuts: The channels.
        parameters: The dimension of each free parameter that has channels, by name.
        judge: `difference`.
    """
    place = judge(*readings)
    if place is None or not _may_be_rounding(*readings):
        return place
    wide = inputs.double() if inputs.is_floating_point() else inputs
    try:
        before, after = (copied(model).double() for model in models)
        return judge(silenced(before, wide, cuts, parameters), read(after, wide, cuts, parameters))
    except Exception:  # The model's code names another type, or the device has no float64.
        return place


def _may_be_rounding(expected: Reading, found: Reading) -> bool:
    """Return whether the first values that differ do so by as little as rounding may."""
    if [(name, value.shape) for name, value in expected] != [(name, value.shape) for name, value in found]:
        return False
    for (_, wanted), (_, value) in zip(expected, found, strict=True):
        if not is_close(wanted, value):
            return wanted.dtype in _ROUNDED and _share_apart(wanted, value) < LARGEST
    return False


def _share_apart(wanted: Tensor, value: Tensor) -> float:
    """Return the largest difference of two tensors of one shape, as a share of the largest value of the first."""
    wanted, value = torch.nan_to_num(wanted.double()), torch.nan_to_num(value.double())
    return float((wanted - value).abs().max() / wanted.abs().max().clamp_min(1e-30))
