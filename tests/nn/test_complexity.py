from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch_pruning
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torchvision.models import VisionTransformer, resnet18

from cleanai_ray.errors import EvaluationError
from cleanai_ray.nn.complexity import Complexity, measure_complexity
from cleanai_ray.nn.hooks import count_hooks


def macs(model: nn.Module, *shape: int) -> int:
    return measure_complexity(model, torch.randn(1, *shape)).macs


def test_convolutions_by_hand() -> None:
    # Output positions x output channels x kernel x input channels of a group.
    assert macs(nn.Conv2d(3, 5, 3, padding=1), 3, 7, 9) == 7 * 9 * 5 * 9 * 3
    assert macs(nn.Conv2d(3, 5, (1, 3), stride=2), 3, 8, 9) == 4 * 4 * 5 * 3 * 3
    assert macs(nn.Conv2d(6, 6, 3, groups=6), 6, 5, 5) == 3 * 3 * 6 * 9
    assert macs(nn.Conv2d(6, 4, 1, groups=2), 6, 5, 5) == 5 * 5 * 4 * 3


def test_linear_layers_by_hand() -> None:
    assert macs(nn.Linear(7, 3), 7) == 21
    assert macs(nn.Linear(7, 3), 11, 7) == 11 * 21  # applied to 11 tokens


def test_the_batch_does_not_count() -> None:
    assert measure_complexity(nn.Linear(7, 3), torch.randn(16, 7)).macs == 21


def resnet18_macs_by_hand() -> dict[str, int]:
    """Layer by layer: 7x7/2 stem to 112, 3x3/2 pooling to 56, stages of 64, 128, 256, 512 channels at 56, 28, 14, 7."""
    layers = {"conv1": 112 * 112 * 64 * 7 * 7 * 3}
    inputs = 64
    for stage, (width, size) in enumerate([(64, 56), (128, 28), (256, 14), (512, 7)], start=1):
        for block in range(2):
            name = f"layer{stage}.{block}"
            layers[f"{name}.conv1"] = size * size * width * 3 * 3 * inputs
            layers[f"{name}.conv2"] = size * size * width * 3 * 3 * width
            if inputs != width:
                layers[f"{name}.downsample.0"] = size * size * width * inputs
            inputs = width
    layers["fc"] = 512 * 1000
    return layers


def test_resnet18_layer_by_layer() -> None:
    expected = resnet18_macs_by_hand()
    found = measure_complexity(resnet18(), torch.randn(1, 3, 224, 224))
    assert {layer.name: layer.macs for layer in found.layers} == expected
    assert found.macs == sum(expected.values())
    assert round(found.macs / 1e9, 3) == 1.814
    assert [layer.name for layer in found.layers] == list(expected)
    assert [layer.index for layer in found.layers] == list(range(21))
    assert found.params == 11_689_512  # as torchvision documents


def test_torch_pruning_agrees_where_it_counts_the_same() -> None:
    """Without biases, norms, activations and pooling, which it counts as well."""
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False),
        nn.Conv2d(8, 8, 3, groups=8, bias=False),
        nn.Flatten(),
        nn.Linear(8 * 12 * 12, 10, bias=False),
    )
    example = torch.randn(1, 3, 16, 16)
    expected = torch_pruning.utils.count_ops_and_params(model, example)
    found = measure_complexity(model, example)
    assert (found.macs, found.params) == tuple(expected)


class OwnConv(nn.Conv2d):
    pass


def test_subclasses_of_conv2d_are_layers_too() -> None:
    (layer,) = measure_complexity(nn.Sequential(OwnConv(2, 4, 1)), torch.randn(1, 2, 3, 3)).layers
    assert (layer.name, layer.kind, layer.macs, layer.params) == ("0", "OwnConv", 9 * 8, 12)


def small_vit() -> VisionTransformer:
    return VisionTransformer(
        image_size=32, patch_size=8, num_layers=2, num_heads=4, hidden_dim=24, mlp_dim=40, num_classes=7
    )


def vit_macs_by_hand() -> tuple[int, int]:
    tokens, width, hidden = (32 // 8) ** 2 + 1, 24, 40
    projections = tokens * width * 3 * width + tokens * width * width  # queries, keys, values; output
    scores = tokens * tokens * width  # queries x keys, over all heads
    mixing = tokens * tokens * width  # scores x values
    attention = projections + scores + mixing
    block = attention + 2 * tokens * width * hidden
    patches = 16 * width * 8 * 8 * 3
    return patches + 2 * block + width * 7, attention


@pytest.mark.parametrize("training", [False, True])
def test_vision_transformer_counts_its_attention(training: bool) -> None:
    model = small_vit().train(training)
    total, attention = vit_macs_by_hand()
    found = measure_complexity(model, torch.randn(1, 3, 32, 32))
    assert found.macs == total
    layers = [layer for layer in found.layers if layer.kind == "MultiheadAttention"]
    assert [(layer.macs, layer.in_channels, layer.out_channels) for layer in layers] == [(attention, 24, 24)] * 2
    assert [layer.params for layer in layers] == [4 * 24 * 24 + 4 * 24] * 2
    assert sum(layer.macs for layer in found.layers) == total
    assert torch.backends.mha.get_fastpath_enabled()


class EncoderLayer(nn.Module):
    """nn.TransformerEncoderLayer, which has a fast path of its own in evaluation mode."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(8, 2, dim_feedforward=16, batch_first=True)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.layer(tokens)


def test_transformer_encoder_layer_counts_its_attention() -> None:
    tokens = 5
    expected = tokens * 4 * 8 * 8 + 2 * tokens * tokens * 8 + 2 * tokens * 8 * 16
    assert macs(EncoderLayer(), tokens, 8) == expected


class CallsOutOfOrder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(3, 2)
        self.unused = nn.Linear(3, 100)
        self.first = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.first(self.first(x)))


def test_layers_are_in_execution_order_with_all_their_calls() -> None:
    found = measure_complexity(CallsOutOfOrder(), torch.randn(1, 3))
    assert [(layer.name, layer.index, layer.macs) for layer in found.layers] == [("first", 0, 18), ("last", 1, 6)]
    assert found.macs == 24
    assert found.params == 12 + 400 + 8


def test_channels_of_grouped_convolutions_are_whole() -> None:
    (layer,) = measure_complexity(nn.Sequential(nn.Conv2d(6, 4, 1, groups=2)), torch.randn(1, 6, 3, 3)).layers
    assert (layer.in_channels, layer.out_channels, layer.params) == (6, 4, 4 * 3 + 4)


def test_the_model_is_left_as_it_was() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(18, 2)).train()
    model[1].eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    measure_complexity(model, torch.randn(1, 1, 5, 5))
    assert count_hooks(model) == 0
    assert [module.training for module in model.modules()] == [True, True, False, True, True]
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_no_hook_stays_after_a_failed_pass() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Linear(1, 1))
    with pytest.raises(RuntimeError):
        measure_complexity(model, torch.randn(1, 1, 5, 5))
    assert count_hooks(model) == 0
    assert torch.backends.mha.get_fastpath_enabled()


def test_a_hook_left_on_the_model_is_refused() -> None:
    model = nn.Linear(2, 2)
    model.register_forward_hook(lambda *_: None)
    with pytest.raises(EvaluationError, match="on 'Linear'"):
        measure_complexity(model, torch.randn(1, 2))


def test_size_is_that_of_a_safetensors_file(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3))
    save_file(model.state_dict(), tmp_path / "weights.safetensors")
    found: Complexity = measure_complexity(model, torch.randn(1, 1, 5, 5))
    assert found.size_bytes == (tmp_path / "weights.safetensors").stat().st_size
    assert load_file(tmp_path / "weights.safetensors").keys() == model.state_dict().keys()
