from __future__ import annotations

import pytest
import torch
from torch import nn

from cleanai_ray.config.finetune import FineTuneSection
from cleanai_ray.training.averaging import weight_average
from cleanai_ray.training.context import TrainingError
from cleanai_ray.training.optimizer import build_optimizer, parameter_groups


class EveryKind(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.layer_norm = nn.LayerNorm([4, 2, 2])
        self.attention = nn.MultiheadAttention(4, 2)
        self.head = nn.Linear(4, 2)
        self.tied = nn.Linear(4, 2)
        self.tied.weight = self.head.weight
        self.scale = nn.Parameter(torch.ones(4))
        self.frozen = nn.Parameter(torch.ones(3, 3), requires_grad=False)


DECAYED = {"conv.weight", "attention.in_proj_weight", "attention.out_proj.weight", "head.weight"}


def test_only_weight_matrices_decay_and_each_parameter_is_in_one_group() -> None:
    model = EveryKind()
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decayed, exempt = ({names[id(p)] for p in group["params"]} for group in parameter_groups(model, 0.1))
    assert decayed == DECAYED
    assert exempt == {name for name in names.values() if name != "frozen"} - DECAYED


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_weight_decay_shrinks_weights_but_no_bias_and_no_norm(kind: str) -> None:
    model = EveryKind()
    section = FineTuneSection.model_validate(
        {"optimizer": kind, "learning_rate": 0.5, "weight_decay": 0.1, "momentum": 0.0}
    )
    before = {name: value.clone() for name, value in model.named_parameters()}
    optimizer = build_optimizer(model, section)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, value in model.named_parameters():
        # Without a gradient, both optimizers multiply by 1 - learning rate * weight decay = 0.95.
        torch.testing.assert_close(value, before[name] * (0.95 if name in DECAYED else 1.0))


def test_sgd_with_momentum_is_nesterov() -> None:
    model = nn.Linear(1, 1, bias=False)
    section = FineTuneSection.model_validate({"learning_rate": 0.1, "momentum": 0.5, "weight_decay": 0.0})
    optimizer = build_optimizer(model, section)
    nn.init.zeros_(model.weight)
    model.weight.grad = torch.ones(1, 1)
    optimizer.step()
    # Nesterov: gradient + momentum * velocity = 1 + 0.5; without Nesterov the first step would be 1.
    assert model.weight.item() == pytest.approx(-0.15)


def test_a_model_without_trainable_parameters_is_refused() -> None:
    with pytest.raises(TrainingError, match="0 trainable parameters"):
        parameter_groups(nn.Linear(2, 2).requires_grad_(False), 0.1)


def test_average_follows_its_definition_for_weights_and_buffers() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    average = weight_average(model, 0.9)
    expected = {name: value.double() for name, value in model.state_dict().items()}
    for _ in range(5):
        model(torch.randn(8, 3))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter))
        average.update_parameters(model)
        for name, value in model.state_dict().items():
            is_count = name.endswith("num_batches_tracked")
            expected[name] = value.double() if is_count else 0.9 * expected[name] + 0.1 * value.double()
    for name, value in average.module.state_dict().items():
        torch.testing.assert_close(value.double(), expected[name], rtol=1e-5, atol=1e-6)
    assert average.module.state_dict()["1.num_batches_tracked"] == 5
