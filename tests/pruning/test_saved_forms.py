"""Saved models of other precisions, and of modules that read the versions in a state dictionary."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from small_nets import build, example
from torch import Tensor, nn

from cleanai_ray.api import load, prune, save


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("net", ["plain", "residual", "depthwise", "flattened"])
def test_a_model_of_any_precision_loads_with_its_own_factory(net: str, dtype: torch.dtype, tmp_path: Path) -> None:
    result = prune(build(net).to(dtype), example().to(dtype), method="magnitude", ratio=0.3)
    assert {value.dtype for value in result.model.parameters()} == {dtype}
    save(result, tmp_path)
    read = load(tmp_path, lambda: build(net).to(dtype))
    for name, value in result.model.state_dict().items():
        assert read.state_dict()[name].dtype == value.dtype
        assert torch.equal(read.state_dict()[name], value)


class Versioned(nn.Module):
    """A module that changes states of its first version when it loads them, as torchvision's MNASNet does."""

    _version = 2

    def __init__(self) -> None:
        super().__init__()
        self.net = build("plain")

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def _load_from_state_dict(
        self, state: Mapping[str, Any], prefix: str, metadata: Mapping[str, Any], *others: Any
    ) -> None:
        assert metadata.get("version") == 2, f"a state of version {metadata.get('version')} is of another architecture"
        super()._load_from_state_dict(state, prefix, metadata, *others)  # type: ignore[arg-type]


def test_modules_that_read_the_version_of_a_state_find_their_own(tmp_path: Path) -> None:
    result = prune(Versioned().eval(), example(), method="magnitude", ratio=0.3)
    save(result, tmp_path)
    torch.testing.assert_close(load(tmp_path, Versioned).eval()(example()), result.model(example()))
