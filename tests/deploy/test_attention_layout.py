"""Attention is translated to ONNX wherever it leaves its result in memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from cleanai_ray.deploy.onnx import open_session, to_onnx


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
