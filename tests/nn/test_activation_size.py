"""The largest tensor that a module returns, in bytes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cleanai_ray.nn.activation_size import largest_activation
from cleanai_ray.nn.hooks import count_hooks


class Halves(nn.Module):
    """Returns a tuple."""

    def forward(self, x: Tensor) -> Any:
        return x[:, :1], (x[:, 1:],)


def test_the_largest_tensor_counts_wherever_it_is_returned() -> None:
    # Of float32: 1 x 2 x 3 x 3 values read, 1 x 5 x 3 x 3 = 45 returned by the convolution, 36 in the tuple.
    model = nn.Sequential(nn.Conv2d(2, 5, 1), Halves())
    assert largest_activation(model, lambda: model(torch.zeros(1, 2, 3, 3))) == 45 * 4
    assert largest_activation(model[1], lambda: model(torch.zeros(1, 2, 3, 3))) == 36 * 4
    assert largest_activation(model, lambda: None) == 0
    assert count_hooks(model) == 0


def test_no_hook_outlives_an_error() -> None:
    model = nn.Sequential(nn.Linear(2, 3))
    with pytest.raises(RuntimeError):
        largest_activation(model, lambda: model(torch.zeros(1, 5)))
    assert count_hooks(model) == 0
