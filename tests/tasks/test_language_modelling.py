"""Language models: hidden layers and whole heads go, the residual stream stays, perplexity judges."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import cleanai_ray as cleanai
from cleanai_ray.errors import EvaluationError
from cleanai_ray.graph.graph import ChannelGraph
from cleanai_ray.repair import repair
from cleanai_ray.tasks import find_task

LM = "language_modelling"
LENGTH, HEAD = 16, 4


class Attention(nn.Module):
    """Causal self-attention; the number of heads follows from the width of its layers."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.head_dim = HEAD
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(width, heads * HEAD) for _ in range(3))
        self.out_proj = nn.Linear(heads * HEAD, width)

    def forward(self, x: Tensor) -> Tensor:
        def heads(layer: nn.Module) -> Tensor:
            return layer(x).view(*x.shape[:2], -1, self.head_dim).transpose(1, 2)

        mixed = functional.scaled_dot_product_attention(
            heads(self.q_proj), heads(self.k_proj), heads(self.v_proj), is_causal=True
        )
        return self.out_proj(mixed.transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Attention and a feed-forward layer, each added to what it reads."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.expand, self.contract = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.contract(functional.gelu(self.expand(self.norm2(x))))


class GPT(nn.Module):
    """A decoder of GPT's design (Radford et al. 2018), small."""

    def __init__(self, vocabulary: int, *, width: int = 32, heads: int = 6, hidden: int = 64, depth: int = 2) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(vocabulary, width), nn.Embedding(LENGTH, width)
        self.blocks = nn.Sequential(*(Block(width, heads, hidden) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, vocabulary, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        places = torch.arange(tokens.shape[1], device=tokens.device)
        return self.head(self.norm(self.blocks(self.tokens(tokens) + self.positions(places))))


def text() -> tuple[list[tuple[Tensor, Tensor]], list[tuple[Tensor, Tensor]], int]:
    """Batches of (tokens, the tokens that follow) to train on and to judge by, from this project's licence."""
    content = (Path(__file__).resolve().parents[2] / "LICENSE").read_text().lower()
    letters = sorted(set(content))
    tokens = torch.tensor([letters.index(letter) for letter in content])
    rows = tokens[: len(tokens) // (LENGTH + 1) * (LENGTH + 1)].view(-1, LENGTH + 1)
    rows = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))]
    batches = [(part[:, :-1], part[:, 1:]) for part in rows[:512].split(64)]
    return batches[:6], batches[6:], len(letters)


def llama(vocabulary: int) -> nn.Module:
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=24,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=6,
        num_key_value_heads=6,
        head_dim=HEAD,
        max_position_embeddings=LENGTH,
        use_cache=False,
    )
    return transformers.LlamaForCausalLM(config)


MODELS = {"gpt": GPT, "llama": llama}
ATTENTION = {"gpt": "blocks.{}.attention", "llama": "model.layers.{}.self_attn"}


@pytest.fixture(scope="module", params=MODELS)
def trained(request: pytest.FixtureRequest) -> Any:
    """(name, trained model, batches to train on, batches to judge by)."""
    torch.manual_seed(0)
    training, judging, vocabulary = text()
    model = MODELS[request.param](vocabulary).eval()
    options = {"optimizer": "adamw", "learning_rate": 0.01, "scheduler": "constant", "early_stopping": None}
    cleanai.fine_tune(model, training, judging, task=LM, epochs=6, **options)
    return request.param, model, training, judging


def negative_log_likelihoods(model: nn.Module, batches: list[tuple[Tensor, Tensor]]) -> list[float]:
    """-log p of every token that counts, one by one."""
    found = []
    with torch.no_grad():
        for tokens, following in batches:
            outputs = model(tokens)
            logits = (outputs if isinstance(outputs, Tensor) else outputs.logits).double()
            for i, row in enumerate(following.tolist()):
                for t, token in enumerate(row):
                    if token != -100:
                        scores = logits[i, t]
                        found.append(math.log(sum(math.exp(value) for value in scores.tolist())) - float(scores[token]))
    return found


def test_perplexity_is_exp_of_the_mean_negative_log_likelihood(trained: Any) -> None:
    _, model, _, judging = trained
    judging = [(tokens[:7], following[:7].clone()) for tokens, following in judging]
    judging[0][1][:3, 5:] = -100
    expected = negative_log_likelihoods(model, judging)
    assert len(expected) == 2 * 7 * LENGTH - 3 * (LENGTH - 5)
    found = cleanai.evaluate(model, judging, task=LM)
    assert found.loss == pytest.approx(np.mean(expected), rel=1e-6)
    assert found.value == pytest.approx(math.exp(np.mean(expected)), rel=1e-6)
    assert found.merit == pytest.approx(1 / found.value)
    assert found.num_samples == 14


def test_heads_and_hidden_layers_are_pruned_repaired_and_fine_tuned(trained: Any) -> None:
    name, model, training, judging = trained
    before = copy.deepcopy(model.state_dict())
    dense = cleanai.evaluate(model, judging, task=LM)
    assert dense.value < 0.5 * text()[2]  # chance: as many as there are letters
    result = cleanai.prune(model, training[0][0][:1], training, method="magnitude", ratio=0.3, task=LM, round_to=None)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    small = result.model
    assert type(small) is type(model)
    for index in range(2):
        attention = small.get_submodule(ATTENTION[name].format(index))
        widths = {attention.q_proj.out_features, attention.k_proj.out_features, attention.v_proj.out_features}
        assert widths == {4 * HEAD}  # int(24 x 0.7) = 16 of 24 channels stay: 4 of 6 heads
    hidden = [layer.out_features for key, layer in small.named_modules() if key.endswith(("expand", "gate_proj"))]
    assert hidden == [44, 44]  # int(64 x 0.7)
    embeddings = {key for key, layer in model.named_modules() if isinstance(layer, nn.Embedding)}
    assert embeddings <= set(result.plan.request["bounds"]["ignored_layers"])
    assert all(
        layer.embedding_dim == model.get_submodule(key).embedding_dim
        for key, layer in small.named_modules()
        if isinstance(layer, nn.Embedding)
    )
    pruned = cleanai.evaluate(small, judging, task=LM)
    repaired = repair(model, result, training, task=LM)
    assert type(repaired.model) is type(model)
    found = cleanai.evaluate(repaired.model, judging, task=LM)
    assert found.loss < pruned.loss
    tuned = cleanai.fine_tune(
        repaired.model, training, judging, task=LM, epochs=2, optimizer="adamw", learning_rate=0.003
    )
    assert tuned.best_epoch > 0
    assert tuned.history[-1]["validation_perplexity"] > 1
    assert cleanai.evaluate(repaired.model, judging, task=LM).loss < found.loss


def test_a_pruned_head_is_one_whose_output_was_silent(trained: Any) -> None:
    _, model, training, _ = trained
    result = cleanai.prune(model, training[0][0][:1], method="random", ratio=0.3, task=LM)
    silent = copy.deepcopy(model)
    with torch.no_grad():
        for group in result.plan.groups:
            gone = list(group.removed)
            if "attn" in group.name or "attention" in group.name:
                assert len(gone) == 2 * HEAD
                heads = np.unique(np.asarray(gone) // HEAD)
                assert sorted(gone) == sorted(h * HEAD + d for h in heads for d in range(HEAD))
            for reader in group.inputs:
                silent.get_submodule(reader).weight[:, gone] = 0
    tokens = training[0][0]
    with torch.no_grad():
        outputs = [network(tokens) for network in (result.model, silent)]
    small, expected = (value if isinstance(value, Tensor) else value.logits for value in outputs)
    torch.testing.assert_close(small, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("method", ["taylor", "wanda", "coverage", "reconstruction", "hessian"])
def test_methods_that_read_data_prune_a_language_model(trained: Any, method: str) -> None:
    _, model, training, _ = trained
    batches = [(tokens[:8], following[:8]) for tokens, following in training[:2]]
    result = cleanai.prune(model, batches[0][0][:1], batches, method=method, ratio=0.3, task=LM)
    assert len(result.plan.groups) == 4
    assert all(group.removed for group in result.plan.groups)


def test_steps_take_whole_heads_each_time(trained: Any) -> None:
    _, model, training, _ = trained
    result = cleanai.prune(
        model, training[0][0][:1], training[:1], method="reconstruction", ratio=0.6, steps=2, task=LM
    )
    for group in result.plan.groups:
        if "attn" in group.name or "attention" in group.name:
            heads = {channel // HEAD for channel in group.removed}
            assert sorted(group.removed) == [head * HEAD + place for head in sorted(heads) for place in range(HEAD)]
            assert len(heads) == 4  # int(24 x 0.4) = 9 channels stay at the most: 2 heads


def test_a_pruned_language_model_is_saved_and_loaded(trained: Any, tmp_path: Path) -> None:
    _, model, training, _ = trained
    result = cleanai.prune(model, training[0][0][:1], method="magnitude", ratio=0.3, task=LM)
    cleanai.save(result, tmp_path)
    loaded = cleanai.load(tmp_path, lambda: copy.deepcopy(model)).eval()
    assert type(loaded) is type(model)
    with torch.no_grad():
        outputs = [network(training[0][0]) for network in (result.model, loaded)]
    first, second = (value if isinstance(value, Tensor) else value.logits for value in outputs)
    assert torch.equal(first, second)


def test_heads_that_share_keys_keep_their_width() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=20, hidden_size=24, intermediate_size=32, num_hidden_layers=1, num_attention_heads=6,
        num_key_value_heads=2, head_dim=HEAD,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config).eval()
    task = find_task(LM)
    graph = ChannelGraph(task.network(model), task.example_input((1, 8)), task.ignored_layers(model))
    assert [group.num_channels for group in graph.groups] == [32]


class Packed(nn.Module):
    """Queries, keys and values from one layer: heads that are not recognised."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.packed = nn.Embedding(10, 12), nn.Linear(12, 36)
        self.out, self.head = nn.Linear(12, 12), nn.Linear(12, 10)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.tokens(tokens)
        parts = self.packed(x).view(*x.shape[:2], 9, 4).chunk(3, dim=2)
        mixed = functional.scaled_dot_product_attention(*(part.transpose(1, 2) for part in parts), is_causal=True)
        return self.head(self.out(mixed.transpose(1, 2).flatten(2)))


def test_packed_heads_keep_their_width() -> None:
    model, task = Packed().eval(), find_task(LM)
    graph = ChannelGraph(task.network(model), task.example_input((1, 8)), task.ignored_layers(model))
    assert "packed" not in {member.layer for group in graph.groups for member in group.members}


def test_an_output_that_is_no_language_models_is_refused() -> None:
    tokens = torch.zeros(2, 5, dtype=torch.int64)
    with pytest.raises(EvaluationError, match=r"output is \[2, 5\], allowed is \[2, 5, vocabulary\]"):
        cleanai.evaluate(nn.Identity(), [(tokens, tokens)], task=LM)
