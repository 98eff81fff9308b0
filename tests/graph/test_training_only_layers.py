"""Auxiliary heads that only training runs: the layers that they read keep their width, and the model can be trained."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cleanai_ray.api import fine_tune, prune
from cleanai_ray.graph.training_pass import TrainingPass


class Auxiliary(nn.Module):
    """A second head in the middle, as Inception and deeply supervised networks have it."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.first = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 12, 3, padding=1)
        self.second, self.fc, self.aux = nn.Conv2d(12, 24, 3, padding=1), nn.Linear(24, 3), head

    def forward(self, x: Tensor) -> Any:
        x = torch.relu(self.first(torch.relu(self.stem(x))))
        y = self.fc(torch.relu(self.second(x)).mean((2, 3)))
        return (y, self.aux(x)) if self.training else y


HEADS = {
    "convolution": lambda: nn.Sequential(
        nn.Conv2d(12, 8, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3)
    ),
    "linear": lambda: nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 3)),
    "norm": lambda: nn.Sequential(nn.BatchNorm2d(12), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LazyLinear(3)),
}


def build(head: str) -> tuple[nn.Module, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    model, x = Auxiliary(HEADS[head]()), torch.randn(8, 3, 8, 8, generator=generator)
    model(x)
    return model.eval(), x, torch.randint(0, 3, (8,), generator=generator)


@pytest.mark.parametrize("head", HEADS)
def test_what_only_training_reads_keeps_its_width(head: str) -> None:
    model, x, y = build(head)
    result = prune(model, x[:1], method="magnitude", ratio=0.5)
    assert (result.model.stem.out_channels, result.model.second.out_channels) == (8, 12)
    assert result.model.first.out_channels == 12
    (warning,) = result.plan.warnings
    assert warning.startswith("layer 'first' keeps its width: a layer that only training runs reads it, which")
    assert "in layer 'aux." in warning
    before = result.model.stem.weight.clone()
    fine_tune(result.model, [(x, y)] * 2, [(x, y)], epochs=1, learning_rate=0.01)
    assert not result.model.training
    assert result.model.stem.weight.shape == before.shape


def test_without_the_head_it_can_be_narrowed() -> None:
    model, x, _ = build("linear")
    model.aux = nn.Identity()
    assert prune(model, x[:1], method="magnitude", ratio=0.5).model.first.out_channels == 6


def test_models_without_such_layers_and_those_that_training_needs_targets_for_are_not_run_in_training() -> None:
    class NeedsTargets(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            if self.training:
                raise ValueError("targets are needed")
            return super().forward(x)

    x = torch.zeros(1, 4)
    assert TrainingPass.of(nn.Sequential(nn.Linear(4, 4), nn.Dropout()), x) is None
    assert TrainingPass.of(NeedsTargets(4, 4), x) is None


def test_a_training_pass_leaves_the_model_as_it_is() -> None:
    model, x, _ = build("convolution")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = TrainingPass.of(model, x)
    assert found is not None
    assert found.layers == ("aux.0", "aux.1", "aux.5")
    assert found.fault(model) is None
    assert not model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_pre_hooks for module in model.modules())
