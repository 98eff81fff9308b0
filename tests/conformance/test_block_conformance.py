"""Networks of every kind lose blocks: what is left is the dense model with those branches at their means."""

from __future__ import annotations

import copy
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from small_nets import example, tiny_vit
from test_architectures import network
from torch import Tensor, nn
from torchvision.models import SwinTransformer
from torchvision.models.convnext import CNBlockConfig, ConvNeXt

import cleanai_ray as cleanai
from cleanai_ray.deploy.onnx import open_session, to_onnx
from cleanai_ray.graph.block import Block
from cleanai_ray.graph.blocks import find_blocks
from cleanai_ray.nn.open_attention import open_attention

SMALL = 32


def convnext() -> tuple[nn.Module, Tensor]:
    model = ConvNeXt([CNBlockConfig(8, 12, 2), CNBlockConfig(12, None, 2)], num_classes=5)
    for name, parameter in model.named_parameters():
        if name.endswith("layer_scale"):
            nn.init.uniform_(parameter, 0.5, 1.5)
    return model, example(3, size=SMALL, channels=3)


def swin() -> tuple[nn.Module, Tensor]:
    model = SwinTransformer([2, 2], 16, [2, 2], [2, 2], [4, 4], num_classes=5)
    nn.init.normal_(model.head.weight)
    return model, example(3, size=SMALL, channels=3)


def from_torchvision(name: str) -> tuple[nn.Module, Tensor]:
    model, _, images, _ = network(name, SMALL)
    return model, images[:3]


NETWORKS: dict[str, tuple[Any, int]] = {
    # Networks with the number of their blocks: by the depths, without the first of each stage where it has no shortcut.
    "resnet50": (lambda: from_torchvision("resnet50"), 2 + 3 + 5 + 2),
    "mobilenet_v3_small": (lambda: from_torchvision("mobilenet_v3_small"), 6),
    "efficientnet_b0": (lambda: from_torchvision("efficientnet_b0"), 1 + 1 + 2 + 2 + 3),
    "regnet_y_400mf": (lambda: from_torchvision("regnet_y_400mf"), 2 + 5 + 5),
    "convnext": (convnext, 4),
    "vit": (lambda: (tiny_vit(), example(3, size=16, channels=3)), 2 * 2),
    "swin": (swin, 4 * 2),
}


def held(model: nn.Module, block: Block, mean: Tensor) -> Any:
    """A hook that puts a branch's mean in place of its output."""

    def hook(module: nn.Module, args: Any, output: Any) -> Any:
        first = output if isinstance(output, Tensor) else output[0]
        constant = torch.zeros_like(first) + mean.reshape(block.shape)
        return constant if isinstance(output, Tensor) else (constant, *output[1:])

    assert block.end is not None
    return model.get_submodule(block.end).register_forward_hook(hook)


@pytest.mark.parametrize("name", NETWORKS)
@torch.no_grad()
def test_blocks_are_removed_narrowed_saved_and_loaded(name: str, tmp_path: Path) -> None:
    make, number = NETWORKS[name]
    torch.manual_seed(0)
    model, images = make()
    model.eval()
    blocks = find_blocks(model, images)
    assert len(blocks) == number
    chosen = [block.name for block in (blocks[0], blocks[1], blocks[-1])]
    result = cleanai.prune(model, images[:1], [images], remove_blocks=chosen)
    twin = copy.deepcopy(open_attention(model))
    with ExitStack() as undo:
        for removed in result.plan.blocks:
            undo.callback(held(twin, removed.block, torch.tensor(removed.mean)).remove)
        expected = twin(images)
    scale = float(expected.abs().max())
    assert float((expected - model(images)).abs().max()) > 1e-3 * scale, "the blocks had no effect"
    torch.testing.assert_close(result.model.eval()(images), expected, rtol=1e-3, atol=1e-4 * scale)

    narrow = cleanai.prune(
        model, images[:1], [images], remove_blocks=chosen, method="magnitude", ratio=0.3, repair="closed_form"
    )
    assert narrow.plan.removed
    cleanai.save(narrow, tmp_path)
    loaded = cleanai.load(tmp_path, lambda: make()[0]).eval()
    assert torch.equal(loaded(images), narrow.model.eval()(images))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["efficientnet_b0", "convnext", "swin"])
def test_networks_without_blocks_compute_the_same_in_onnxruntime(name: str) -> None:
    pytest.importorskip("onnxruntime")
    torch.manual_seed(0)
    model, images = NETWORKS[name][0]()
    blocks = find_blocks(model.eval(), images)
    chosen = [block.name for block in (blocks[0], blocks[-1])]
    narrow = cleanai.prune(
        model, images[:1], [images], remove_blocks=chosen, method="magnitude", ratio=0.3
    ).model.eval()
    with torch.no_grad():
        expected = narrow(images)
    found = open_session(to_onnx(narrow, images), threads=1)(images)
    torch.testing.assert_close(torch.as_tensor(found), expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))
