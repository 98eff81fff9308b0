"""The consumers of a model, their order, and the place where their output can be shifted."""

from __future__ import annotations

import copy

import pytest
import torch
from pruned_nets import images_for
from small_nets import NETS, build, tiny_vit
from torch import Tensor, nn

from cleanai_ray.nn.consumers import add_biases, shift_output
from cleanai_ray.nn.hooks import count_hooks
from cleanai_ray.nn.open_attention import open_attention
from cleanai_ray.repair.trace import trace_consumers

IMAGES = images_for("plain", 6)


class Block(nn.Module):
    """A convolution without bias, read in a way that `wiring` says, and a head."""

    def __init__(self, wiring: str) -> None:
        super().__init__()
        self.wiring = wiring
        self.conv = nn.Conv2d(2, 4, 3, padding=1, bias=False)
        self.other = nn.Conv2d(2, 4, 1, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.relu = nn.ReLU(inplace=True)
        self.fc = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        if self.wiring == "norm":
            y = self.norm(y)
        elif self.wiring == "rectifier between":
            y = self.norm(self.relu(y))
        elif self.wiring == "read twice":
            y = y + self.norm(y)
        elif self.wiring == "shared norm":
            y = self.norm(y) + self.norm(self.other(x))
        elif self.wiring == "runs twice":
            y = self.norm(y) + self.conv(2 * x)
        return self.fc(self.relu(y).mean(dim=(2, 3)))


def block(wiring: str) -> Block:
    torch.manual_seed(1)
    model = Block(wiring).double()
    model.norm.running_mean.normal_()
    model.norm.running_var.uniform_(0.5, 2.0)
    return model.eval()


WIRINGS = ["none", "norm", "rectifier between", "read twice", "shared norm", "runs twice"]


@pytest.mark.parametrize("wiring", WIRINGS)
def test_a_shift_reaches_the_output_as_if_the_layer_had_a_bias(wiring: str) -> None:
    model, shift, images = block(wiring), torch.tensor([0.5, -0.2, 1.0, 0.3], dtype=torch.float64), IMAGES.double()
    consumer = next(consumer for consumer in trace_consumers(model, images) if consumer.name == "conv")
    shifted = copy.deepcopy(model)
    shift_output(shifted, consumer, shift)
    handle = model.conv.register_forward_hook(lambda _, args, output: output + shift[:, None, None])
    assert torch.allclose(shifted(images), model(images), atol=1e-12)
    handle.remove()
    assert not torch.allclose(shifted(images), model(images), atol=1e-3)
    assert (consumer.norm, shifted.conv.bias is None) == (("norm", True) if wiring == "norm" else (None, False))


def test_consumers_come_in_execution_order() -> None:
    found = {name: [consumer.name for consumer in trace_consumers(build(name), IMAGES)] for name in NETS}
    assert found["residual"] == ["stem", "conv1", "conv2", "head", "fc"]
    assert found["depthwise"] == ["expand", "project", "fc"]
    assert found["grouped"] == ["conv1", "conv3", "fc"]
    layers = [consumer.name for consumer in trace_consumers(tiny_vit(), images_for("vit", 2))]
    prefix = "encoder.layers.encoder_layer_0"
    assert layers[:4] == ["conv_proj", f"{prefix}.self_attention", f"{prefix}.mlp.0", f"{prefix}.mlp.3"]
    opened = [consumer.name for consumer in trace_consumers(open_attention(tiny_vit()), images_for("vit", 2))]
    parts = [f"{prefix}.self_attention.{part}_proj" for part in ("q", "k", "v", "out")]
    assert opened[:7] == ["conv_proj", *parts, f"{prefix}.mlp.0", f"{prefix}.mlp.3"]


def test_calls_are_counted_and_no_hook_stays() -> None:
    model = block("runs twice").train()
    calls = {consumer.name: consumer.num_calls for consumer in trace_consumers(model, IMAGES.double())}
    assert calls == {"conv": 2, "fc": 1}
    assert count_hooks(model) == 0
    assert all(module.training for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_model_takes_the_weights_of_a_copy_that_got_biases() -> None:
    model = block("none")
    repaired = copy.deepcopy(model)
    consumer = next(consumer for consumer in trace_consumers(model, IMAGES.double()) if consumer.name == "conv")
    shift_output(repaired, consumer, torch.ones(4, dtype=torch.float64))
    add_biases(model, repaired.state_dict())
    model.load_state_dict(repaired.state_dict(), strict=True)
    assert torch.equal(model(IMAGES.double()), repaired(IMAGES.double()))
