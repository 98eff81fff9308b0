"""Blocks of decoders as language models have them today: RMS norms, grouped queries, gated feed-forward layers."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from cleanai_ray.graph.block import remove_block
from cleanai_ray.graph.blocks import find_blocks

WIDTH, HEADS, HEAD, HIDDEN = 12, 4, 3, 20


class RMSNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * x * torch.rsqrt(x.pow(2).mean(dim=-1, keepdim=True) + 1e-6)


class Attention(nn.Module):
    """Four query heads that share two heads of keys and values (Ainslie et al. 2023)."""

    def __init__(self) -> None:
        super().__init__()
        self.q_proj, self.o_proj = (nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(2))
        self.k_proj, self.v_proj = (nn.Linear(WIDTH, WIDTH // 2, bias=False) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        query = self.q_proj(x).unflatten(-1, (HEADS, HEAD)).transpose(1, 2)
        shared = [each(x).unflatten(-1, (HEADS // 2, HEAD)).transpose(1, 2) for each in (self.k_proj, self.v_proj)]
        key, value = (each.repeat_interleave(2, dim=1) for each in shared)
        found = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        return self.o_proj(found.transpose(1, 2).flatten(2))


class Gated(nn.Module):
    """A feed-forward layer with a gate (Shazeer 2020)."""

    def __init__(self) -> None:
        super().__init__()
        self.gate_proj, self.up_proj = (nn.Linear(WIDTH, HIDDEN, bias=False) for _ in range(2))
        self.down_proj = nn.Linear(HIDDEN, WIDTH, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(functional.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.input_layernorm, self.post_attention_layernorm = RMSNorm(), RMSNorm()
        self.self_attn, self.mlp = Attention(), Gated()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x))
        return x + self.mlp(self.post_attention_layernorm(x))


class Decoder(nn.Module):
    """A decoder of Llama's design (Touvron et al. 2023), small."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.layers = nn.Embedding(9, WIDTH), nn.ModuleList([Layer(), Layer()])
        self.norm, self.head = RMSNorm(), nn.Linear(WIDTH, 9, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.tokens(tokens)
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x)).transpose(1, 2)


@pytest.fixture(scope="module")
def decoder() -> nn.Module:
    torch.manual_seed(0)
    return Decoder().eval()


TOKENS = torch.arange(10).reshape(2, 5) % 9


def test_attention_and_gated_layers_are_found(decoder: nn.Module) -> None:
    found = [block.name for block in find_blocks(decoder, TOKENS)]
    assert found == [f"layers.{place}.{part}" for place in (0, 1) for part in ("self_attn", "mlp")]


@pytest.mark.parametrize("part", ["self_attn", "mlp"])
@torch.no_grad()
def test_without_one_the_decoder_is_that_with_its_mean(decoder: nn.Module, part: str) -> None:
    (block,) = [block for block in find_blocks(decoder, TOKENS) if block.name == f"layers.1.{part}"]
    mean = torch.linspace(-1, 1, WIDTH)
    small, twin = copy.deepcopy(decoder), copy.deepcopy(decoder)
    remove_block(small, block, mean)
    twin.get_submodule(f"layers.1.{part}").register_forward_hook(lambda *_: mean.expand(2, 5, WIDTH))
    assert torch.allclose(small(TOKENS), twin(TOKENS), atol=1e-6)
    assert not torch.allclose(small(TOKENS), decoder(TOKENS), atol=1e-2)
    gone = sum(value.numel() for value in decoder.get_submodule(f"layers.1.{part}").parameters())
    left = sum(value.numel() for value in decoder.parameters()) - gone
    assert left <= sum(value.numel() for value in small.parameters()) <= left + WIDTH
