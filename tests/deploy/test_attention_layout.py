"""Attention is translated to ONNX wherever it leaves its result in memory, and however many dimensions it has."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from cleanai_ray.deploy.onnx import open_session, to_onnx
from cleanai_ray.deploy.onnx_attention import _attend


def test_attention_with_a_bias_by_position_is_translated() -> None:
    """BEiT's: torch's fused kernel takes the bias as a mask, and lays its result out as one view of it needs."""
    pytest.importorskip("onnxruntime")
    transformers: Any = pytest.importorskip("transformers")
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.BeitConfig(image_size=16, patch_size=8, use_relative_position_bias=True, **sizes)
    torch.manual_seed(0)
    model = transformers.BeitForImageClassification(config).eval()
    content = to_onnx(model, torch.randn(1, 3, 16, 16))
    batch = torch.randn(4, 3, 16, 16)
    with torch.no_grad():
        expected = model(batch).logits
    torch.testing.assert_close(torch.from_numpy(open_session(content)(batch)), expected, rtol=1e-4, atol=1e-5)


class InWindows(nn.Module):
    """Attention in two windows beside each other: queries [N, heads, windows, tokens, values], as Hiera has them."""

    def forward(self, x: Tensor) -> Tensor:
        parts = x.unflatten(1, (2, 3)).unflatten(3, (2, 4)).permute(0, 3, 1, 2, 4)
        return functional.scaled_dot_product_attention(parts, parts * 2, parts + 1).transpose(1, 2).flatten(1)


def test_attention_within_windows_is_translated() -> None:
    pytest.importorskip("onnxruntime")
    model = InWindows().eval()
    content = to_onnx(model, torch.randn(1, 6, 8))
    batch = torch.randn(4, 6, 8)
    torch.testing.assert_close(torch.from_numpy(open_session(content)(batch)), model(batch), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "options",
    [{}, {"scale": 0.3}, {"is_causal": True}, {"attn_mask": torch.randn(4, 4)},
     {"attn_mask": torch.randn(4, 4) < torch.eye(4) * 9}],
)  # fmt: skip
def test_attention_spelled_out_is_that_of_torch(options: dict[str, Any]) -> None:
    query, key, value = (torch.randn(2, 3, 2, 4, 5) for _ in range(3))
    expected = functional.scaled_dot_product_attention(query, key, value, **options)
    torch.testing.assert_close(_attend(query, key, value, **options), expected)
