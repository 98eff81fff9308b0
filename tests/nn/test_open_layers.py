"""Layers of other forms become plain ones that compute the same: transposed weights, packed heads, computed weights."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from masked_dense import masked
from torch import Tensor, nn
from torch.nn import functional

import cleanai_ray as cleanai
from cleanai_ray.graph.graph import ChannelGraph
from cleanai_ray.nn.complexity import measure_complexity
from cleanai_ray.nn.open_attention import open_attention
from cleanai_ray.nn.open_layers import PackedProjections
from cleanai_ray.repair import RepairOptions, repair

WIDTH, HEADS, FEATURES = 16, 4, 12


class Conv1D(nn.Module):
    """A linear map with its weight transposed, as transformers has it."""

    def __init__(self, nf: int, nx: int) -> None:
        super().__init__()
        self.nf, self.nx = nf, nx
        self.weight, self.bias = nn.Parameter(torch.randn(nx, nf) / nx**0.5), nn.Parameter(torch.randn(nf))

    def forward(self, x: Tensor) -> Tensor:
        flat = torch.addmm(self.bias, x.view(-1, x.size(-1)), self.weight)
        return flat.view(*x.shape[:-1], self.nf)


class Doubled(Conv1D):
    """Another layer by the name of that class."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x) - self.bias


Doubled.__name__ = "Conv1D"


class Attention(nn.Module):
    """Attention as GPT-2 has it."""

    def __init__(self) -> None:
        super().__init__()
        self.num_heads, self.head_dim, self.split_size = HEADS, WIDTH // HEADS, WIDTH
        self.c_attn, self.c_proj = Conv1D(3 * WIDTH, WIDTH), Conv1D(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        parts = self.c_attn(x).split(self.split_size, dim=2)
        query, key, value = (part.view(*x.shape[:-1], -1, self.head_dim).transpose(1, 2) for part in parts)
        mixed = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        return self.c_proj(mixed.transpose(1, 2).reshape(*x.shape[:-1], -1))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.ln_1, self.attn, self.ln_2 = nn.LayerNorm(WIDTH), Attention(), nn.LayerNorm(WIDTH)
        self.c_fc, self.c_proj = Conv1D(4 * WIDTH, WIDTH), Conv1D(WIDTH, 4 * WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln_1(x))
        return x + self.c_proj(functional.gelu(self.c_fc(self.ln_2(x))))


class SmallGPT(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.blocks = nn.Linear(FEATURES, WIDTH), nn.Sequential(Block(), Block())
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.blocks(self.stem(x))).mean(1))


def tokens(number: int, seed: int = 1) -> Tensor:
    return torch.randn(number, 6, FEATURES, generator=torch.Generator().manual_seed(seed))


def small_gpt() -> nn.Module:
    return SmallGPT().eval()


def test_transposed_weights_are_opened_in_place_and_cost_the_same() -> None:
    model = small_gpt()
    other = open_attention(model)
    assert open_attention(other) is other
    assert not any(isinstance(module, Conv1D) for module in other.modules())
    assert sum(isinstance(module, PackedProjections) for module in other.modules()) == 2
    torch.testing.assert_close(other(tokens(2)), model(tokens(2)))
    memory = {value.untyped_storage().data_ptr() for value in model.parameters()}
    assert {value.untyped_storage().data_ptr() for value in other.parameters()} == memory
    one, two = measure_complexity(model, tokens(1)), measure_complexity(other, tokens(1))
    assert (one.macs, one.params) == (two.macs, two.params)
    # 6 tokens; 3 projections, an output and two layers of the MLP in each of two blocks; the stem; the head once.
    linear = 6 * 2 * (4 * WIDTH * WIDTH + 2 * 4 * WIDTH * WIDTH) + 6 * FEATURES * WIDTH + 3 * WIDTH
    assert sum(layer.macs for layer in two.layers) == linear


def test_heads_hidden_layers_and_the_stream_lose_their_share_exactly() -> None:
    model = small_gpt()
    result = cleanai.prune(model, tokens(1), method="magnitude", ratio=0.5, round_to=None)
    assert result.plan.warnings == ()
    hidden = {group.name: len(group.removed) for group in result.plan.groups if "c_fc" in group.name}
    assert hidden == {"blocks.0.c_fc": 32, "blocks.1.c_fc": 32}
    attention: Any = result.model.get_submodule("blocks.1.attn")
    assert (attention.num_heads, attention.split_size, attention.c_attn.q_proj.out_features) == (2, 8, 8)
    assert result.model.get_submodule("norm").weight.shape == (8,)
    twin = masked(model, result.kept_inputs, result.kept_outputs)
    torch.testing.assert_close(result.model(tokens(3)), twin(tokens(3)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("compensation", ["closed_form", "sequential", "unfolded"])
def test_statistics_and_repair_read_them_like_linear_layers(compensation: str, tmp_path: Path) -> None:
    model, data = small_gpt(), [tokens(16, seed) for seed in range(3)]
    result = cleanai.prune(model, tokens(1), data, method="wanda", ratio=0.3, round_to=None)
    before = (result.model(tokens(32, 9)) - model(tokens(32, 9))).square().mean()
    outcome = repair(model, result, data, RepairOptions(compensation=compensation, batch_norm="none"))
    after = (outcome.model(tokens(32, 9)) - model(tokens(32, 9))).square().mean()
    assert after < 0.7 * before
    cleanai.save(result, tmp_path)
    loaded = cleanai.load(tmp_path, small_gpt).eval()
    assert torch.equal(loaded(tokens(2)), result.model(tokens(2)))


class Standardised(nn.Conv2d):
    """A convolution whose weight has no mean and one variance for each output (Qiao et al. 2019, arXiv:1903.10520)."""

    def weights(self) -> Tensor:
        flat = self.weight.flatten(1)
        scale = (flat.var(1, unbiased=False, keepdim=True) + 1e-6).rsqrt()
        return ((flat - flat.mean(1, keepdim=True)) * scale).view_as(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        return functional.conv2d(x, self.weights(), self.bias, self.stride, self.padding, self.dilation, self.groups)


class Gained(Standardised):
    """The same with a gain for each output, as NFNets have it."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.gain = nn.Parameter(torch.rand(self.out_channels, 1, 1, 1) + 0.5)

    def weights(self) -> Tensor:
        return super().weights() * self.gain


class Muted(Standardised):
    """A standardised convolution that adds nothing at first, as the last one of each branch in BiT."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        nn.init.zeros_(self.weight)


class PaddedAnew(Standardised):
    """The same, padded by as much as its input needs, which no plain convolution does."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(functional.pad(x, (0, x.shape[3] % 2, 0, x.shape[2] % 2)))


class Scaled(nn.Conv2d):
    """A convolution that scales its weight; no weight depends on another."""

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.weight * 2.0, self.bias)


class OfMode(Standardised):
    """A standardised convolution that in training is a plain one."""

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.weight, self.bias) if self.training else super().forward(x)


class OfInput(nn.Conv2d):
    """A convolution whose weight depends on what it reads."""

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, (self.weight * x.mean()).softmax(1), self.bias)


@pytest.mark.parametrize("kind", [Standardised, Gained, Muted])
@pytest.mark.parametrize("options", [{}, {"stride": 2, "padding": 1}, {"groups": 2, "dilation": 2, "bias": False}])
def test_a_weight_that_is_computed_from_itself_becomes_a_weight(kind: Any, options: dict[str, Any]) -> None:
    module = kind(4, 6, 3, **options)
    before = copy.deepcopy(module.state_dict())
    other = open_attention(module)
    assert type(other) is nn.Conv2d
    assert open_attention(other) is other
    image = torch.randn(2, 4, 11, 11)
    torch.testing.assert_close(other(image), module(image))
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


@torch.no_grad()
def test_what_is_opened_does_not_depend_on_weights() -> None:
    """Standardising leaves a weight that is standard as it is: of mean 0 and variance 1, but for 1e-6 in the root."""
    module = Standardised(4, 1, 1, bias=False)
    module.weight.copy_(torch.tensor([1.0, -1.0, -1.0, 1.0]).reshape(1, 4, 1, 1))
    assert type(open_attention(module)) is nn.Conv2d
    same = Doubled(WIDTH, WIDTH)
    same.weight.zero_()
    assert open_attention(same) is same


@pytest.mark.parametrize("kind", [PaddedAnew, Scaled, OfInput, OfMode, nn.Conv2d])
def test_a_convolution_of_another_kind_stays(kind: Any) -> None:
    module = kind(4, 6, 2, 2)
    assert open_attention(module) is module


@pytest.mark.parametrize("kind", [Standardised, Gained])
def test_convolutions_with_standardised_weights_are_pruned_exactly(kind: Any, tmp_path: Path) -> None:
    def build() -> nn.Module:
        torch.manual_seed(0)
        layers = [kind(3, 8, 3), nn.ReLU(), kind(8, 10, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
        return nn.Sequential(*layers, nn.Linear(10, 3)).eval()

    model, images = build(), torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    graph = ChannelGraph(model, images)
    assert graph.notes == ()
    graph.remove({"0": [0, 5], "2": [3]})
    first, second, last = model[0], model[2], model[6]
    hidden = functional.conv2d(images, first.weights(), first.bias).relu()
    hidden[:, [0, 5]] = 0
    hidden = functional.conv2d(hidden, second.weights(), second.bias).relu()
    hidden[:, 3] = 0
    torch.testing.assert_close(graph.model(images), last(hidden.mean((2, 3))), rtol=1e-4, atol=1e-5)
    result = cleanai.prune(model, images, method="magnitude", ratio=0.3, round_to=None)
    cleanai.save(result, tmp_path)
    assert torch.equal(cleanai.load(tmp_path, build).eval()(images), result.model(images))
