"""Attention in separate layers computes what the packed module computes, and what cannot be opened is left alone."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from packed_attention import PackedAttention, packed_vit
from small_nets import example, tiny_vit
from torch import Tensor, nn
from torchvision.models.swin_transformer import ShiftedWindowAttention, ShiftedWindowAttentionV2

from cleanai_ray.nn.attention import OpenAttention
from cleanai_ray.nn.complexity import measure_complexity
from cleanai_ray.nn.open_attention import open_attention


def tokens(*shape: int, seed: int = 3) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def random_weights(model: nn.Module) -> Any:
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / 3)
    return model.double().eval()


def opened(module: nn.Module) -> Any:
    found = open_attention(module)
    assert isinstance(found, OpenAttention)
    return found


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("average", [True, False])
def test_multihead_attention_between_two_sequences(batch_first: bool, bias: bool, average: bool) -> None:
    module = random_weights(nn.MultiheadAttention(12, 3, bias=bias, batch_first=batch_first))
    shapes = [(2, 4, 12), (2, 5, 12), (2, 5, 12)]
    inputs = [tokens(*shape, seed=i) for i, shape in enumerate(shapes)]
    if not batch_first:
        inputs = [part.transpose(0, 1) for part in inputs]
    expected = module(*inputs, average_attn_weights=average)
    found = opened(module)(*inputs, average_attn_weights=average)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


def test_multihead_attention_of_sequences_of_other_widths() -> None:
    module = random_weights(nn.MultiheadAttention(12, 3, kdim=7, vdim=5, batch_first=True))
    inputs = tokens(2, 4, 12), tokens(2, 6, 7), tokens(2, 6, 5)
    torch.testing.assert_close(opened(module)(*inputs)[0], module(*inputs)[0])


@pytest.mark.parametrize("mask", ["none", "allowed", "added", "of each head"])
@pytest.mark.parametrize("padding", ["none", "ignored", "added"])
def test_masks_mean_the_same(mask: str, padding: str) -> None:
    module = random_weights(nn.MultiheadAttention(12, 3, batch_first=True))
    x = tokens(2, 5, 12)
    masks = {
        "none": None,
        "allowed": torch.ones(5, 5, dtype=torch.bool).triu(1),
        "added": tokens(5, 5),
        "of each head": tokens(6, 5, 5),
    }
    ignored = torch.tensor([[False] * 5, [False, False, False, True, True]])
    paddings = {"none": None, "ignored": ignored, "added": torch.zeros(2, 5).double().masked_fill(ignored, -3.0)}
    given = {"attn_mask": masks[mask], "key_padding_mask": paddings[padding]}
    if mask == "allowed" and padding == "added":
        given["attn_mask"] = torch.zeros(5, 5).double().masked_fill(given["attn_mask"], -torch.inf)
    expected, weights = module(x, x, x, **given)
    found, found_weights = opened(module)(x, x, x, **given)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(found_weights, weights)


def test_a_sequence_without_a_batch() -> None:
    module = random_weights(nn.MultiheadAttention(12, 3))
    x = tokens(5, 12)
    for one, other in zip(opened(module)(x, x, x), module(x, x, x), strict=True):
        torch.testing.assert_close(one, other)


def test_transformer_layers_of_torch_work_with_it() -> None:
    layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True)
    model = random_weights(nn.TransformerEncoder(layer, 2))
    x, padding = tokens(2, 5, 16), torch.tensor([[False] * 5, [False, False, False, True, True]])
    other = open_attention(model)
    with torch.no_grad():
        torch.testing.assert_close(other(x), model(x))
        found, expected = (network(x, src_key_padding_mask=padding) for network in (other, model))
    torch.testing.assert_close(found[~padding], expected[~padding])


@pytest.mark.parametrize("options", [{}, {"qkv_bias": True}, {"qk_norm": True}], ids=str)
@pytest.mark.parametrize("given", [{}, {"is_causal": True}, {"attn_mask": tokens(5, 5)}], ids=["all", "causal", "mask"])
def test_packed_self_attention(options: dict[str, bool], given: dict[str, Any]) -> None:
    module = random_weights(PackedAttention(12, 3, **options))
    x = tokens(2, 5, 12)
    found = opened(module)
    torch.testing.assert_close(found(x, **given), module(x, **given))
    assert found.normalises_queries == ("qk_norm" in options)


@pytest.mark.parametrize(
    "options", [{}, {"qkv_bias": True, "qk_norm": True}, {"attn_head_dim": 8}], ids=["plain", "norm", "wide"]
)
def test_attention_of_timm(options: dict[str, Any]) -> None:
    attention = pytest.importorskip("timm.layers.attention").Attention
    module = random_weights(attention(12, 3, norm_layer=nn.LayerNorm, **options))
    x = tokens(2, 5, 12)
    torch.testing.assert_close(opened(module)(x), module(x))


@pytest.mark.parametrize("size", [(8, 8), (7, 9), (4, 4), (3, 10)])
@pytest.mark.parametrize("shift", [[0, 0], [2, 2]])
def test_attention_in_shifted_windows(size: tuple[int, int], shift: list[int]) -> None:
    """Maps of several windows and of one, with padding and without."""
    module = random_weights(ShiftedWindowAttention(12, [4, 4], shift, 3))
    x = tokens(2, *size, 12)
    torch.testing.assert_close(opened(module)(x), module(x))


class Biased(PackedAttention):
    """It looks packed, and adds to every output what no replacement would."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.extra = nn.Parameter(torch.zeros(12))

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        return super().forward(x, attn_mask, is_causal) + self.extra


class Rotated(PackedAttention):
    """It takes an argument that the replacement does not know."""

    def forward(self, x: Tensor, rope: Tensor | None = None) -> Tensor:
        return super().forward(x if rope is None else x * rope)


class Unequal(nn.Module):
    """A packed layer and an output layer of the right names and widths, and no attention."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.proj, self.num_heads = nn.Linear(12, 36), nn.Linear(12, 12), 3

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(self.qkv(x).chunk(3, dim=2)[0])


@pytest.mark.parametrize(
    "module",
    [
        Biased(12, 3),
        Rotated(12, 3),
        Unequal(),
        nn.MultiheadAttention(12, 3, add_bias_kv=True),
        nn.MultiheadAttention(12, 3, add_zero_attn=True),
        ShiftedWindowAttentionV2(12, [4, 4], [2, 2], 3),
        nn.Linear(3, 3),
    ],
    ids=lambda module: type(module).__name__,
)
def test_what_is_something_else_stays(module: nn.Module) -> None:
    assert open_attention(module) is module


def test_the_choice_does_not_depend_on_weights() -> None:
    """A bias of zeros adds nothing now, and would after training."""
    module = Biased(12, 3)
    assert not module.extra.any()
    assert open_attention(module) is module


@pytest.mark.parametrize("model", [tiny_vit(), packed_vit()], ids=["torchvision", "packed"])
def test_a_whole_model_shares_its_weights_and_is_opened_once(model: nn.Module) -> None:
    before = copy.deepcopy(model.state_dict())
    images = example(3, size=16, channels=3)
    other = open_attention(model)
    assert type(other) is type(model)
    assert open_attention(other) is other
    assert sum(isinstance(module, OpenAttention) for module in other.modules()) == 2
    with torch.no_grad():
        torch.testing.assert_close(other(images), model(images))
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert sum(value.numel() for value in other.parameters()) == sum(value.numel() for value in model.parameters())
    memory = {value.untyped_storage().data_ptr() for value in model.parameters()}
    assert {value.untyped_storage().data_ptr() for value in other.parameters()} == memory


def test_flags_of_parameters_and_modes_of_modules_stay() -> None:
    model = tiny_vit()
    model.encoder.layers[0].self_attention.in_proj_weight.requires_grad_(False)
    model.encoder.layers[1].train()
    other = open_attention(model)
    first, second = (layer.self_attention for layer in other.encoder.layers)
    assert not any(layer.weight.requires_grad for layer in (first.q_proj, first.k_proj, first.v_proj))
    assert first.out_proj.weight.requires_grad
    assert (first.heads.training, second.heads.training) == (False, True)


def test_the_cost_is_the_same() -> None:
    """Products of queries, keys and values included, which are a layer of their own."""
    model, image = tiny_vit(), example(1, size=16, channels=3)
    packed, separate = measure_complexity(model, image), measure_complexity(open_attention(model), image)
    assert (packed.macs, packed.params) == (separate.macs, separate.params)
    products = [layer for layer in separate.layers if layer.kind == "HeadProduct"]
    assert [layer.macs for layer in products] == [2 * 17 * 17 * 32] * 2
