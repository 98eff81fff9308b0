"""Decoders lose whole blocks, attention or feed-forward layers, whose input are tokens."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from test_language_modelling import GPT, LENGTH, LM
from torch import Tensor, nn

import cleanai_ray as cleanai
from cleanai_ray.errors import PruningError

BLOCKS = ["blocks.0.attention", "blocks.1.expand"]


def tokens(number: int = 6) -> Tensor:
    return torch.randint(0, 20, (number, LENGTH), generator=torch.Generator().manual_seed(0))


class Constant(nn.Module):
    """The slow twin of a removed branch's last layer."""

    def __init__(self, mean: Tensor) -> None:
        super().__init__()
        self.mean = mean

    def forward(self, x: Tensor) -> Tensor:
        return self.mean.expand(*x.shape[:2], -1)


@torch.no_grad()
def test_a_decoder_loses_attention_and_feed_forward_layers(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = GPT(20).eval()
    inputs = tokens()
    errors = cleanai.measure_blocks(model, inputs[:1], [inputs], task=LM)
    assert [error.name for error in errors] == [
        f"blocks.{place}.{part}" for place in (0, 1) for part in ("attention", "expand")
    ]
    x = model.tokens(inputs) + model.positions(torch.arange(LENGTH))
    attention = model.blocks[0].attention(model.blocks[0].norm1(x)).mean(dim=(0, 1))
    y = model.blocks[0](x)
    block = model.blocks[1]
    y = y + block.attention(block.norm1(y))
    feed_forward = block.contract(nn.functional.gelu(block.expand(block.norm2(y)))).mean(dim=(0, 1))
    twin = copy.deepcopy(model)
    twin.blocks[0].attention, twin.blocks[1].contract = Constant(attention), Constant(feed_forward)
    result = cleanai.prune(model, inputs[:1], [inputs], remove_blocks=BLOCKS, task=LM)
    torch.testing.assert_close(result.model.eval()(inputs), twin(inputs))
    assert not torch.allclose(twin(inputs), model(inputs), atol=1e-3)
    assert result.plan.model["task"] == LM

    narrow = cleanai.prune(model, inputs[:1], [inputs], remove_blocks=BLOCKS, task=LM, method="magnitude", ratio=0.5)
    assert narrow.plan.removed
    cleanai.save(narrow, tmp_path)
    loaded = cleanai.load(tmp_path, lambda: GPT(20)).eval()
    assert torch.equal(loaded(inputs), narrow.model.eval()(inputs))


def test_heads_and_layers_of_a_removed_block_have_no_group() -> None:
    model = GPT(20).eval()
    dense = cleanai.prune(model, tokens()[:1], [tokens()], task=LM, method="magnitude", ratio=0.5).plan
    plan = cleanai.prune(model, tokens()[:1], [tokens()], remove_blocks=BLOCKS, task=LM).plan
    gone = {group.name for group in dense.groups} - {group.name for group in plan.groups}
    assert gone
    assert all(name.startswith(tuple(BLOCKS)) for name in gone)
    with pytest.raises(PruningError, match=r"names .blocks.7.attention., which is no residual branch"):
        cleanai.prune(model, tokens()[:1], [tokens()], remove_blocks=["blocks.7.attention"], task=LM)
