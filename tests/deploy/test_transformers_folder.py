"""Pruned models of transformers as folders that transformers loads, and refusals of what no configuration can say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from source_models import new_weights, write_hf_vit
from torch import Tensor, nn

import cleanai_ray as cleanai
from cleanai_ray.deploy.transformers_folder import export_transformers
from cleanai_ray.errors import ArtifactError
from cleanai_ray.registry import FORMATS

transformers = pytest.importorskip("transformers")

TOKENS = torch.randint(0, 60, (2, 9), generator=torch.Generator().manual_seed(0))
COMMON = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 4}
COMMON |= {"vocab_size": 60, "max_position_embeddings": 16, "bos_token_id": 1, "eos_token_id": 2}


def llama(layers: int = 2, **options: Any) -> Any:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(**COMMON, num_hidden_layers=layers, tie_word_embeddings=False, **options)
    return transformers.LlamaForCausalLM(config).eval()


def qwen(layers: int = 2) -> Any:
    torch.manual_seed(0)
    return transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**COMMON, num_hidden_layers=layers)).eval()


def gpt2(layers: int = 2) -> Any:
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        n_embd=32, n_head=4, n_layer=layers, n_positions=16, vocab_size=60, bos_token_id=1, eos_token_id=2
    )
    return transformers.GPT2LMHeadModel(config).eval()


def prune(model: nn.Module, **options: Any) -> cleanai.PruneResult:
    wanted = {"method": "magnitude", "task": "language_modelling", "round_to": None, **options}
    return cleanai.prune(model, TOKENS[:1], [TOKENS], progress=False, **wanted)


def logits(model: nn.Module, tokens: Tensor = TOKENS) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(tokens).logits
    return found


def loaded(model: nn.Module, folder: Path) -> Any:
    """Export a model, and return what transformers alone loads, which must compute exactly the same."""
    assert export_transformers(model, TOKENS[:1], folder) == folder
    found = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    assert type(found).__module__.startswith("transformers.")
    torch.testing.assert_close(logits(found), logits(model), rtol=0, atol=1e-6)
    return found


@pytest.mark.parametrize(
    ("build", "ignored", "expected"),
    [
        (llama, [], {"num_attention_heads": 2, "num_key_value_heads": 2, "intermediate_size": 32}),
        (qwen, [], {"num_attention_heads": 2, "num_key_value_heads": 2, "intermediate_size": 32}),
        (gpt2, ["*.attn"], {"n_inner": 64, "n_head": 4}),
    ],
)
def test_a_language_model_pruned_by_half_is_loaded(
    build: Any, ignored: list[str], expected: dict[str, int], tmp_path: Path
) -> None:
    """Half of 4 heads, and of 64 (for GPT-2, of 4 x 32) hidden features; the stream and the size of a head stay."""
    model = build()
    result = prune(model, ratio=0.5, ignored_layers=ignored)
    found = loaded(result.model, tmp_path / "small")
    config = json.loads((tmp_path / "small" / "config.json").read_text())
    assert {key: config[key] for key in expected} == expected
    assert found.config.hidden_size == 32
    assert sum(p.numel() for p in found.parameters()) == result.plan.achieved["params"]
    assert found.generation_config.eos_token_id == 2
    assert len({file.stat().st_mode for file in (tmp_path / "small").iterdir()}) == 1  # readable alike
    generated = found.generate(TOKENS[:1, :4], min_new_tokens=3, max_new_tokens=3, do_sample=False)
    assert generated.shape == (1, 7)


def test_an_image_classifier_comes_with_its_image_processor(tmp_path: Path) -> None:
    """A vision transformer loses stream, heads and hidden features; its processor stays as the source has it."""
    write_hf_vit(tmp_path / "dense")
    model = transformers.AutoModelForImageClassification.from_pretrained(tmp_path / "dense").eval()
    images = torch.randn(2, 3, 32, 32)
    result = cleanai.prune(model, images[:1], method="magnitude", ratio=0.5, round_to=None)
    export_transformers(result.model, images[:1], tmp_path / "small")
    found = transformers.AutoModelForImageClassification.from_pretrained(tmp_path / "small").eval()
    torch.testing.assert_close(logits(found, images), logits(result.model, images), rtol=0, atol=1e-6)
    sizes = [getattr(found.config, key) for key in ("hidden_size", "num_attention_heads", "head_dim")]
    assert sizes == [16, 2, 8]
    assert found.config.intermediate_size == 32
    assert found.config.id2label == model.config.id2label
    processors = [transformers.AutoImageProcessor.from_pretrained(tmp_path / name) for name in ("dense", "small")]
    assert processors[0].to_dict() == processors[1].to_dict()


def test_biases_of_a_repair_are_asked_for_in_the_configuration(tmp_path: Path) -> None:
    result = prune(llama(), ratio=0.5, repair="closed_form")
    assert result.model.model.layers[0].mlp.down_proj.bias is not None
    found = loaded(result.model, tmp_path)
    assert found.config.mlp_bias
    assert not torch.count_nonzero(found.model.layers[0].mlp.gate_proj.bias)


def test_a_bias_that_no_key_gives_is_refused(tmp_path: Path) -> None:
    result = prune(qwen(), ratio=0.5, repair="closed_form")
    with pytest.raises(ArtifactError, match=r"layer 'model\.layers\.0\..*' has a bias.* Qwen2Config has no key"):
        export_transformers(result.model, TOKENS[:1], tmp_path / "small")
    assert not (tmp_path / "small").exists()


@pytest.mark.parametrize("gone", [1, 0])
def test_whole_layers_that_were_removed_are_not_counted(gone: int, tmp_path: Path) -> None:
    """What a removed layer gave on average is in the bias of the layer before it, or in the token embeddings."""
    blocks = [f"model.layers.{gone}.self_attn", f"model.layers.{gone}.mlp"]
    result = prune(llama(3), ratio=0.5, remove_blocks=blocks)
    found = loaded(result.model, tmp_path)
    assert (found.config.num_hidden_layers, found.config.intermediate_size) == (2, 32)
    assert found.config.mlp_bias == (gone == 1)


def test_a_removed_layer_of_gpt2_has_its_bias_before_it(tmp_path: Path) -> None:
    blocks = ["transformer.h.1.attn", "transformer.h.1.mlp"]
    result = prune(gpt2(3), ratio=0.5, remove_blocks=blocks, ignored_layers=["*.attn"])
    assert loaded(result.model, tmp_path / "small").config.n_layer == 2
    first = prune(gpt2(3), remove_blocks=["transformer.h.0.attn", "transformer.h.0.mlp"])
    with pytest.raises(ArtifactError, match="embeddings are also the weights of the output layer"):
        export_transformers(first.model, TOKENS[:1], tmp_path / "first")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            {"layer_ratios": {"model.layers.1.mlp": 0.25}},
            r"LlamaConfig has one intermediate_size for all layers, by which layers 'model\.layers\.0\.mlp\.gate_proj' "
            r"and 'model\.layers\.1\.mlp\.gate_proj' cannot have the sizes 32 and 48; .*equal_widths",
        ),
        ({"layer_ratios": {"model.layers.0.self_attn": 0.25}}, "one num_attention_heads for all layers"),
        ({"ratio": 0.25}, r"LlamaConfig does not allow the sizes .*num_attention_heads: 3.*not a multiple"),
        ({"remove_blocks": ["model.layers.1.mlp"]}, r"block 'model\.layers\.1\..*' was removed, and the rest"),
    ],
)
def test_what_a_configuration_cannot_say_is_refused(options: dict[str, Any], said: str, tmp_path: Path) -> None:
    result = prune(llama(), **{"ratio": 0.5, **options})
    with pytest.raises(ArtifactError, match=said):
        export_transformers(result.model, TOKENS[:1], tmp_path / "small")
    assert list(tmp_path.iterdir()) == []


def test_heads_of_gpt2_cannot_be_said(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"GPT2Config has one n_embd for all layers.*sizes 32 and .*ignored_layers"):
        export_transformers(prune(gpt2(), ratio=0.5).model, TOKENS[:1], tmp_path / "small")


def test_equal_widths_make_a_budget_sayable(tmp_path: Path) -> None:
    """All of it comes from hidden features of the three layers, of which a global ranking takes as many from each."""
    options = {"mode": "global", "budget": {"params": 0.8}, "ignored_layers": ["*.self_attn"]}
    with pytest.raises(ArtifactError, match="one intermediate_size"):
        export_transformers(prune(llama(3), **options).model, TOKENS[:1], tmp_path / "other")
    result = prune(llama(3), equal_widths=["*.mlp.*"], **options)
    found = loaded(result.model, tmp_path / "small")
    assert 0.78 <= result.plan.achieved["params"] / result.plan.achieved["params_dense"] <= 0.8
    assert found.config.intermediate_size < 64


def test_the_stream_of_gpt2_is_cut_with_its_tied_output_layer(tmp_path: Path) -> None:
    """Without a task that keeps the embeddings, half of the 32 channels go, and 2 of 4 heads of 8."""
    result = prune(gpt2(), ratio=0.5, task="classification")
    model: Any = result.model
    assert model.lm_head.weight is model.transformer.wte.weight
    assert model.lm_head.weight.shape == (60, 16)
    assert result.plan.achieved["params"] == sum(value.numel() for value in model.parameters())
    cleanai.save(result, tmp_path / "saved")
    again: Any = cleanai.load(tmp_path / "saved", gpt2)
    assert again.lm_head.weight is again.transformer.wte.weight
    found = loaded(model, tmp_path / "small")
    assert (found.config.n_embd, found.config.n_head, found.config.n_inner) == (16, 2, 64)


class Wrapped(nn.Module):
    """A model of transformers within another, with a layer beside it or without."""

    def __init__(self, inner: nn.Module, *, head: bool = False) -> None:
        super().__init__()
        self.inner = inner
        self.head = nn.Linear(60, 60) if head else nn.Identity()

    def forward(self, tokens: Tensor) -> Tensor:
        result: Tensor = self.head(self.inner(tokens).logits)
        return result


def test_a_model_within_another_is_exported_if_it_is_all_of_it(tmp_path: Path) -> None:
    result = prune(Wrapped(llama()), ratio=0.5)
    export_transformers(result.model, TOKENS[:1], tmp_path / "small")
    found = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "small").eval()
    with torch.no_grad():
        torch.testing.assert_close(logits(found), result.model(TOKENS), rtol=0, atol=1e-6)
    with pytest.raises(ArtifactError, match="has layers besides 'inner'"):
        export_transformers(Wrapped(llama(), head=True), TOKENS[:1], tmp_path / "other")


class Standardising(nn.Module):
    """A model of transformers that reads images less a mean, which is a buffer or a number."""

    def __init__(self, inner: nn.Module, mean: Any) -> None:
        super().__init__()
        self.inner = inner
        if isinstance(mean, Tensor):
            self.register_buffer("mean", mean)
        else:
            self.mean = mean

    def forward(self, images: Tensor) -> Tensor:
        result: Tensor = self.inner((images - self.mean) / 0.5).logits
        return result


class Masking(Wrapped):
    """A model of transformers that is told more than the tokens: the second one of each text is hidden from it."""

    def forward(self, tokens: Tensor) -> Tensor:
        shown = (torch.arange(tokens.shape[1]) != 1).expand_as(tokens)
        result: Tensor = self.inner(tokens, attention_mask=shown).logits
        return result


def test_what_a_model_does_around_another_is_not_left_out(tmp_path: Path) -> None:
    write_hf_vit(tmp_path / "dense")
    vit = transformers.AutoModelForImageClassification.from_pretrained(tmp_path / "dense").eval()
    images, more = torch.randn(1, 3, 32, 32), "does more than its 'inner'; pass that module alone"
    for mean, said in ((torch.full((3, 1, 1), 0.5), "has buffers besides 'inner'"), (0.5, f"Standardising {more}")):
        with pytest.raises(ArtifactError, match=said):
            export_transformers(Standardising(vit, mean), images, tmp_path / "small")
    with pytest.raises(ArtifactError, match=f"Masking {more}"):
        export_transformers(Masking(llama()), TOKENS[:1], tmp_path / "small")
    assert [entry.name for entry in tmp_path.iterdir()] == ["dense"]


def test_other_models_and_other_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="is for models of the package transformers, and this Linear is none"):
        FORMATS.get("transformers")(nn.Linear(2, 2), torch.zeros(1, 2), tmp_path / "linear")
    dense = llama()
    dense.save_pretrained(tmp_path / "dense")
    with pytest.raises(ArtifactError, match="which no export wrote"):
        export_transformers(dense, TOKENS[:1], tmp_path / "dense")
    export_transformers(dense, TOKENS[:1], tmp_path / "small")
    new_weights(dense)
    loaded(dense, tmp_path / "small")
    (tmp_path / "small" / "notes.txt").write_text("mine")
    with pytest.raises(ArtifactError, match=r"holds 'notes\.txt'"):
        export_transformers(dense, TOKENS[:1], tmp_path / "small")
