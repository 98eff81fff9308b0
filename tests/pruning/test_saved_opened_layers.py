"""Saved models with layers of another form: which were opened is in the plan, and plans that name none open none."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import cleanai_ray as cleanai
from cleanai_ray.config.digests import digest
from cleanai_ray.errors import ArtifactError
from cleanai_ray.nn.weights import safetensors_bytes
from cleanai_ray.pruning.plan import PruningPlan


class Standardised(nn.Conv2d):
    """A convolution whose weight has no mean and one variance for each output; `gain` scales it where there is one."""

    def __init__(self, inputs: int, outputs: int, *, gain: bool = False) -> None:
        super().__init__(inputs, outputs, 3)
        self.gain = nn.Parameter(torch.rand(outputs, 1, 1, 1) + 0.5) if gain else None

    def forward(self, x: Tensor) -> Tensor:
        flat = self.weight.flatten(1)
        scale = (flat.var(1, unbiased=False, keepdim=True) + 1e-6).rsqrt()
        weight = ((flat - flat.mean(1, keepdim=True)) * scale).view_as(self.weight)
        return self._conv_forward(x, weight if self.gain is None else weight * self.gain, self.bias)


def net(*, gain: bool = False, outputs: int = 10, seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    layers = [Standardised(3, 8, gain=gain), nn.ReLU(), Standardised(8, outputs, gain=gain), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(outputs, 3)).eval()


def images() -> Tensor:
    return torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def muted() -> nn.Module:
    """The network as it is before training, with a last convolution that gives nothing."""
    model = net(seed=5)
    nn.init.zeros_(model[2].weight)
    return model


@pytest.mark.parametrize("factory", [net, muted])
def test_a_model_loads_whatever_the_weights_of_its_factory_are(
    factory: Callable[[], nn.Module], tmp_path: Path
) -> None:
    result = cleanai.prune(net(), images(), method="magnitude", ratio=0.3, round_to=None)
    assert result.plan.model["plain"] == ["0", "2"]
    cleanai.save(result, tmp_path)
    assert torch.equal(cleanai.load(tmp_path, factory).eval()(images()), result.model(images()))
    again = cleanai.prune(
        cleanai.load(tmp_path, factory).eval(), images(), method="magnitude", ratio=0.3, round_to=None
    )
    cleanai.save(again, tmp_path)
    assert torch.equal(cleanai.load(tmp_path, factory).eval()(images()), again.model(images()))


def test_a_plan_of_a_network_of_plain_layers_names_none() -> None:
    plain = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 3, 6), nn.Flatten()).eval()
    result = cleanai.prune(plain, images(), method="magnitude", ratio=0.5, round_to=None)
    assert "plain" not in result.plan.model


def test_a_layer_that_is_not_the_one_that_was_opened_is_refused(tmp_path: Path) -> None:
    class Scaled(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            return self._conv_forward(x, self.weight * 2, self.bias)

    def other() -> nn.Module:
        model = net()
        model[2] = Scaled(8, 10, 3)
        return model

    cleanai.save(cleanai.prune(net(), images(), method="magnitude", ratio=0.3, round_to=None), tmp_path)
    with pytest.raises(ArtifactError, match=r"whose layer '2' is .* given has a Scaled there"):
        cleanai.load(tmp_path, other)


def old_plan(model: nn.Module, content: bytes) -> str:
    """The plan of a version that left these layers closed: the last one lost outputs 3 and 7, which a Linear reads."""
    shapes: dict[str, Any] = {name: list(value.shape) for name, value in model.state_dict().items()}
    group = {"name": "2", "num_channels": 10, "removed": [3, 7], "num_blocks": 1, "outputs": ["2"], "inputs": ["6"]}
    known = {"class": "Sequential", "shapes": digest(shapes), "example_inputs": [[1, 3, 8, 8]]}
    document = {
        "format": "cleanai-plan/2",
        "model": known,
        "groups": [group],
        "request": {},
        "achieved": {},
        "warnings": [],
    }
    plan = PruningPlan.from_json(json.dumps({**document, "digest": digest(document)}))
    return plan.with_weights(content).to_json()


def test_a_plan_of_an_earlier_version_opens_no_layer(tmp_path: Path) -> None:
    smaller, dense = net(outputs=8, seed=3), net()
    content = safetensors_bytes(smaller)
    (tmp_path / "plan.json").write_text(old_plan(dense, content))
    (tmp_path / "weights.safetensors").write_bytes(content)
    loaded = cleanai.load(tmp_path, net).eval()
    assert type(loaded.get_submodule("2")) is Standardised
    torch.testing.assert_close(loaded(images()), smaller(images()))
    again = cleanai.prune(loaded, images(), method="magnitude", ratio=0.3, round_to=None)
    cleanai.save(again, tmp_path)
    assert torch.equal(cleanai.load(tmp_path, net).eval()(images()), again.model(images()))
