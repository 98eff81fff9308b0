"""Give the published weights of a DeiT or timm vision transformer the names of torchvision's VisionTransformer.

python jobs/deit_weights.py deit_base_patch16_224-b5f2ef4d.pth deit_b.safetensors
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Mapping

import safetensors.torch
import torch
from torch import Tensor

_NAMES = (
    (r"^cls_token$", "class_token"),
    (r"^pos_embed$", "encoder.pos_embedding"),
    (r"^patch_embed\.proj\.", "conv_proj."),
    (r"^blocks\.", "encoder.layers.encoder_layer_"),
    (r"\.norm1\.", ".ln_1."),
    (r"\.norm2\.", ".ln_2."),
    (r"\.attn\.qkv\.", ".self_attention.in_proj_"),
    (r"\.attn\.proj\.", ".self_attention.out_proj."),
    (r"\.mlp\.fc1\.", ".mlp.0."),
    (r"\.mlp\.fc2\.", ".mlp.3."),
    (r"^norm\.", "encoder.ln."),
    (r"^head\.", "heads.head."),
)


def renamed(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors by their names in torchvision; shapes and values are the same in both."""
    found = {}
    for name, value in state.items():
        for pattern, replacement in _NAMES:
            name = re.sub(pattern, replacement, name)
        found[name] = value.contiguous()
    return found


def main(words: list[str]) -> None:
    """Convert the file that the arguments name."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="a file of torch.save with the state under the key 'model', or the state itself")
    parser.add_argument("target", help="the safetensors file to write")
    options = parser.parse_args(words)
    content = torch.load(options.source, map_location="cpu", weights_only=True)
    safetensors.torch.save_file(renamed(content.get("model", content)), options.target)


if __name__ == "__main__":
    main(sys.argv[1:])
