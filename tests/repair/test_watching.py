"""The visits of a running model's layers: which sums they enter, what the shortcut is, and what a change leads to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from small_nets import build, tiny_vit
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import _get_current_function_mode_stack as current_modes
from torchvision.models import resnet18
from torchvision.models.resnet import BasicBlock

from cleanai_ray.nn.hooks import count_hooks
from cleanai_ray.nn.patches import reads_patches
from cleanai_ray.repair.branches import Branch, branch_scale
from cleanai_ray.repair.trace import trace_consumers
from cleanai_ray.repair.watching import Unit, trace_units, visiting


class LayerScale(nn.Module):
    """A factor for each channel of tokens, as in timm and DINOv2."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.linspace(-1, 2, channels))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class Net(nn.Module):
    """Layers a (3 x 3), b (1 x 1), n (batch-norm), d (dropout) and what a forward pass makes of them."""

    def __init__(self, forward: Callable[[Net, Tensor], Any]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1)
        self.n, self.m, self.d = nn.BatchNorm2d(4), nn.BatchNorm2d(4), nn.Dropout(0.5)
        self.shift = nn.Parameter(torch.ones(1, 4, 6, 6))
        self.forward_of = forward
        for norm in (self.n, self.m):
            nn.init.uniform_(norm.weight, 0.5, 2)
            nn.init.normal_(norm.running_mean)

    def forward(self, x: Tensor) -> Any:
        return self.forward_of(self, x)


def units_of(model: nn.Module, images: Tensor) -> list[Unit]:
    return trace_units(model, images, trace_consumers(model, images, reads_patches))


def branches_of(model: nn.Module, images: Tensor) -> dict[str, tuple[tuple[str, ...], int, int]]:
    found = {unit.consumer.name: unit.branch for unit in units_of(model, images)}
    return {name: (b.chain, b.after, b.side) for name, b in found.items() if b is not None}


def in_place(net: Net, x: Tensor) -> Tensor:
    out = net.n(net.a(x))
    out += x
    return torch.relu(out) * out.mean()


def onto_the_shortcut(net: Net, x: Tensor) -> Tensor:
    x = x * 2
    x += net.a(torch.relu(x))
    return x + 1


def two_sums(net: Net, x: Tensor) -> Tensor:
    inner = torch.relu(net.a(x)) + x
    return x + net.n(net.b(inner + inner.mean(dim=(2, 3), keepdim=True)))


def late(net: Net, x: Tensor) -> Tensor:
    made = net.a(x)
    bent = (x + 1) + x
    return bent + made


FOUND: dict[str, tuple[Callable[[Net, Tensor], Any], dict[str, Any]]] = {
    "plain sum": (lambda net, x: x + net.a(x), {"a": ((), 0, 1)}),
    "other side": (lambda net, x: net.a(x) + x, {"a": ((), 0, 0)}),
    "torch.add": (lambda net, x: torch.add(net.a(x), x), {"a": ((), 0, 0)}),
    "add_": (lambda net, x: net.a(x).add_(x).relu_(), {"a": ((), 0, 0)}),
    "batch-norm between": (lambda net, x: x + net.n(net.a(x)), {"a": (("n",), 0, 1)}),
    "two batch-norms between": (lambda net, x: x + net.m(net.n(net.a(x))), {"a": (("n", "m"), 0, 1)}),
    "dropout between": (lambda net, x: x + net.d(net.n(net.d(net.a(x)))), {"a": (("n",), 0, 1)}),
    "pre-activation": (lambda net, x: x + net.a(torch.relu(net.n(x))), {"a": ((), 0, 1)}),
    "two layers": (lambda net, x: x + net.n(net.a(torch.relu(net.b(x)))), {"a": (("n",), 0, 1)}),
    "downsample": (lambda net, x: net.m(net.b(x)) + net.n(net.a(x)), {"a": (("n",), 0, 1)}),
    "downsample first": (lambda net, x: net.a(x) + net.b(x), {"a": ((), 0, 0)}),
    "in place, read twice": (in_place, {"a": (("n",), 0, 0)}),
    "in place onto the shortcut": (onto_the_shortcut, {"a": ((), 0, 1)}),
    "additions in between": (two_sums, {"b": (("n",), 0, 1)}),
    "additions before the sum": (late, {"a": ((), 2, 1)}),
    "the sum is read twice": (lambda net, x: torch.cat([s := x + net.a(x), s]), {"a": ((), 0, 1)}),
    "questions about the output": (
        lambda net, x: x + y if (y := net.a(x)).shape == x.shape and y.is_floating_point() else y,
        {"a": ((), 0, 1)},
    ),
}

LEFT_ALONE: dict[str, Callable[[Net, Tensor], Any]] = {
    "no sum": lambda net, x: net.b(net.a(x)),
    "alpha": lambda net, x: torch.add(x, net.a(x), alpha=0.5),
    "alpha in place": lambda net, x: net.a(x).add_(x, alpha=2),
    "a difference": lambda net, x: x - net.a(x),
    "a constant": lambda net, x: net.a(x) + 1,
    "a constant first": lambda net, x: 1 + net.a(x),
    "broadcasting": lambda net, x: net.a(x) + x.mean(dim=1, keepdim=True),
    "a position embedding": lambda net, x: net.a(x) + net.shift,
    "an activation function": lambda net, x: x + torch.relu(net.a(x)),
    "an activation function in place": lambda net, x: x + functional.relu(net.a(x), inplace=True),
    "an activation function behind batch-norm": lambda net, x: x + torch.relu_(net.n(net.a(x))),
    "a factor": lambda net, x: x + 0.5 * net.a(x),
    "read twice": lambda net, x: x + (y := net.a(x)) + torch.sigmoid(y),
    "read by name": lambda net, x: torch.cat([x + (y := net.a(x)), torch.softmax(input=y, dim=1)]),
    "read before batch-norm": lambda net, x: torch.cat([x + net.n(y := net.a(x)), y]),
    "added twice": lambda net, x: (x + (y := net.a(x))) + y,
    "added to itself": lambda net, x: (y := net.a(x)) + y,
    "given back, too": lambda net, x: (x + (y := net.a(x)), y),
    "given back by name, too": lambda net, x: {"sum": x + (y := net.a(x)), "branch": y},
    "two calls": lambda net, x: (y := x + net.a(x)) + net.a(y),
}


@pytest.mark.parametrize("name", FOUND)
def test_the_sum_that_a_layer_enters_is_found(name: str) -> None:
    forward, expected = FOUND[name]
    net, images = Net(forward), torch.randn(2, 4, 6, 6)
    assert branches_of(net, images) == expected
    assert net.training
    assert count_hooks(net) == 0


@pytest.mark.parametrize("name", LEFT_ALONE)
def test_anything_else_has_no_branch(name: str) -> None:
    assert branches_of(Net(LEFT_ALONE[name]), torch.randn(2, 4, 6, 6)) == {}


def test_blocks_of_well_known_networks_have_branches() -> None:
    assert branches_of(build("residual"), torch.randn(2, 2, 8, 8)) == {"conv2": (("bn2",), 0, 1)}
    found = branches_of(resnet18(num_classes=3), torch.randn(2, 3, 32, 32))
    blocks = [name for name, module in resnet18().named_modules() if isinstance(module, BasicBlock)]
    assert found == {f"{name}.conv2": ((f"{name}.bn2",), 0, 0) for name in blocks}
    # The output of attention is projected by no module that runs.
    found = branches_of(tiny_vit(), torch.randn(2, 3, 16, 16))
    assert found == {f"encoder.layers.encoder_layer_{n}.mlp.3": ((), 0, 1) for n in range(2)}


class Scaled(nn.Module):
    """A residual layer on tokens with layer scale."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.scale = nn.Linear(6, 6), LayerScale(6)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.scale(self.layer(x))


def test_layer_scale_is_part_of_a_branch() -> None:
    net = Scaled()
    assert branches_of(net, torch.randn(2, 5, 6)) == {"layer": (("scale",), 0, 1)}
    scale = branch_scale(net, Branch(chain=("scale",), after=0, side=1))
    assert torch.equal(scale, torch.linspace(-1, 2, 6))


def test_the_scale_of_a_branch_is_the_product_of_its_batch_norms_and_infinite_where_they_switch_off() -> None:
    net = Net(lambda net, x: x + net.m(net.n(net.a(x))))
    with torch.no_grad():
        for norm, weight in ((net.n, [2.0, 3.0, 1e-4, 0.0]), (net.m, [1.0, -1.0, 1.0, 1.0])):
            norm.weight.copy_(torch.tensor(weight))
            norm.running_var.fill_(4.0 - norm.eps)
    scale = branch_scale(net, Branch(chain=("n", "m"), after=0, side=1))
    assert torch.allclose(scale, torch.tensor([0.5, -0.75, torch.inf, torch.inf]))
    assert branch_scale(net, Branch(chain=(), after=0, side=1)) == 1.0


def residual_in_place(net: Net, x: Tensor) -> Tensor:
    x = net.d(net.m(net.b(x)))
    out = net.n(net.a(torch.relu(x)))
    out += x
    return torch.relu_(out)


VISITED: dict[str, tuple[Callable[[Net, Tensor], Any], Callable[[Net, Tensor], tuple[Tensor, Tensor]]]] = {
    # What `a` reads, and the shortcut beside it.
    "plain sum": (FOUND["plain sum"][0], lambda net, x: (x, x)),
    "two batch-norms between": (FOUND["two batch-norms between"][0], lambda net, x: (x, x)),
    "downsample": (FOUND["downsample"][0], lambda net, x: (x, net.m(net.b(x)))),
    "additions before the sum": (late, lambda net, x: (x, 2 * x + 1)),
    "in place onto the shortcut": (onto_the_shortcut, lambda net, x: (torch.relu(2 * x), 2 * x)),
    "in place": (residual_in_place, lambda net, x: (torch.relu(y := net.m(net.b(x))), y)),
}


@pytest.mark.parametrize("name", VISITED)
@torch.no_grad()
def test_a_visit_sees_the_input_and_the_shortcut_and_the_sum_is_that_of_the_changed_weights(name: str) -> None:
    forward, expected = VISITED[name]
    net = Net(forward).eval()
    units = {unit.consumer.name: unit for unit in units_of(net, torch.randn(2, 4, 6, 6))}
    images = torch.randn(3, 4, 6, 6)
    before = net(images)
    seen: dict[str, tuple[Tensor, Tensor | None]] = {}

    def visit(name: str, value: Tensor, shortcut: Tensor | None) -> bool:
        # Whatever a visit computes, additions and layers included, is not visited.
        net.a(value) + value
        seen[name] = value.clone(), None if shortcut is None else shortcut.clone()
        if name == "a":
            net.a.weight.mul_(-3)
            net.a.bias.add_(1)
        return name == "a"

    wanted = expected(net, images)
    with visiting(net, units, visit):
        changed = net(images)
    assert list(seen) == list(units)
    assert seen["a"][1] is not None
    for found, value in zip(seen["a"], wanted, strict=True):
        torch.testing.assert_close(found, value)
    if "b" in seen:
        assert seen["b"][1] is None
    torch.testing.assert_close(changed, net(images))
    assert (changed - before).abs().max() > 0.1


@torch.no_grad()
def test_a_layer_without_a_branch_is_visited_before_it_runs() -> None:
    net, images = Net(lambda net, x: net.b(torch.relu(net.a(x)))).eval(), torch.randn(3, 4, 6, 6)
    units = {unit.consumer.name: unit for unit in units_of(net, images)}

    def visit(name: str, value: Tensor, shortcut: Tensor | None) -> bool:
        assert shortcut is None
        net.get_submodule(name).weight.add_(0.5)
        return True

    with visiting(net, units, visit):
        changed = net(images)
    torch.testing.assert_close(changed, net(images))


def test_attention_is_visited_where_query_key_and_value_are_one_tensor() -> None:
    class Attention(nn.Module):
        def __init__(self, apart: bool) -> None:
            super().__init__()
            self.attention, self.apart = nn.MultiheadAttention(6, 2, batch_first=True), apart

        def forward(self, x: Tensor) -> Tensor:
            return self.attention(query=x, key=x + 1 if self.apart else x, value=x)[0]

    images = torch.randn(2, 5, 6)
    assert [unit.consumer.name for unit in units_of(Attention(False), images)] == ["attention"]
    assert units_of(Attention(True), images) == []


def raises(net: Net, x: Tensor) -> Tensor:
    if x.shape[0] == 5:
        raise ValueError("five")
    return x + net.a(x)


def test_nothing_outlives_an_error() -> None:
    net = Net(raises)
    (unit,) = units_of(net, torch.randn(2, 4, 6, 6))
    with pytest.raises(ValueError, match="five"):
        trace_units(net, torch.randn(5, 4, 6, 6), [unit.consumer])
    with pytest.raises(ValueError, match="five"), visiting(net, {"a": unit}, lambda *_: False):
        net(torch.randn(5, 4, 6, 6))

    def visit(*_: Any) -> bool:
        raise KeyError("visit")

    with pytest.raises(KeyError, match="visit"), visiting(net, {"a": unit}, visit):
        net(torch.randn(2, 4, 6, 6))
    assert count_hooks(net) == 0
    assert current_modes() == []
    assert net.training
    # Nor does what was seen before the error come up in a later pass.
    seen: list[str] = []
    with visiting(net, {"a": unit}, lambda name, *_: bool(seen.append(name))):
        net(torch.randn(2, 4, 6, 6))
    assert seen == ["a"]
