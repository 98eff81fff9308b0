"""A small Llama (Touvron et al. 2023) of transformers: `model.factory: cleanai_ray.models.small_llama:build`."""

from __future__ import annotations

from torch import nn

from cleanai_ray.errors import ModelError


def build(
    num_classes: int, length: int = 64, width: int = 64, hidden: int = 192, heads: int = 8, depth: int = 3
) -> nn.Module:
    """Return a causal language model with random weights; its arguments are `model.options`.

    Args:
        num_classes: Size of the vocabulary.
        length: Most tokens that it reads.
        width: Width of the residual stream.
        hidden: Width of the feed-forward layers.
        heads: Heads of each attention, which share no keys and no values.
        depth: Number of layers.

    Raises:
        ModelError: When the package transformers is missing.
    """
    try:
        from transformers import LlamaConfig, LlamaForCausalLM
    except ImportError as error:
        raise ModelError("small_llama is a model of transformers; pip install 'cleanai-ray[language]'") from error
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=num_classes,
            hidden_size=width,
            intermediate_size=hidden,
            num_hidden_layers=depth,
            num_attention_heads=heads,
            num_key_value_heads=heads,
            max_position_embeddings=length,
            tie_word_embeddings=False,
            use_cache=False,
        )
    )
