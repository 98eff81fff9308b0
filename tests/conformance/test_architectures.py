"""Networks of every kind: each is pruned, run, trained a step, saved, loaded and compensated, or refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import cleanai_ray as cleanai
from cleanai_ray.errors import PruningError
from cleanai_ray.evaluation.complexity import measure_complexity
from cleanai_ray.models import build_model, example_input, ignored_layers
from cleanai_ray.repair import repair
from cleanai_ray.sections import ModelSection

SIZES = {
    "resnet18": 64,
    "resnet50": 64,
    "vgg16_bn": 32,
    "densenet121": 64,
    "mobilenet_v2": 64,
    "mobilenet_v3_small": 64,
    "efficientnet_b0": 64,
    "regnet_y_400mf": 64,
    "googlenet": 64,
    "convnext_tiny": 64,
    "vit_b_16": 32,
    "squeezenet1_1": 64,
}
REFUSED = {
    "shufflenet_v2_x0_5": "ShuffleNetV2 cannot be pruned: its layer 'stage2.0' .* shuffles channels between groups",
    "swin_t": r"SwinTransformer cannot be pruned: its layer 'features.1.0.attn' .* shifted windows",
}
# What a closed form does not reach: convolutions in groups that are not depthwise.
GROUPED = {"regnet_y_400mf": "b.0"}


def network(name: str, size: int) -> tuple[nn.Module, Tensor, Tensor, dict[str, Any]]:
    section = ModelSection(name=name, num_classes=10, input_shape=(3, size, size))
    images = torch.randn(4, 3, size, size, generator=torch.Generator().manual_seed(1))
    return build_model(section), example_input(section), images, {"ignored_layers": ignored_layers(section)}


def share_of_channels(result: cleanai.PruneResult) -> dict[str, float]:
    return {group.name: len(group.removed) / group.num_channels for group in result.plan.groups}


@pytest.mark.parametrize("name", SIZES)
def test_local_ratio_runs_trains_saves_and_is_compensated(name: str, tmp_path: Path) -> None:
    model, example, images, options = network(name, SIZES[name])
    result = cleanai.prune(model, example, method="magnitude", ratio=0.3, **options)
    shares = share_of_channels(result)
    blocks = {group.name: group.num_blocks for group in result.plan.groups}
    for group in result.plan.groups:  # Of 10 channels 7 are kept, of 16 int(11.2) = 11: less than one unit more goes.
        assert 0.3 - 1e-9 <= shares[group.name] < 0.3 + blocks[group.name] / group.num_channels, group.name
    outcome = repair(model, result, [images], compensation="closed_form", batch_norm="none")
    assert all(GROUPED.get(name, "no other layer") in layer for layer in outcome.skipped), outcome.skipped
    repaired = outcome.model
    with torch.no_grad():
        expected = repaired.eval()(images)
    assert torch.isfinite(expected).all()
    changed = [
        key for key, value in result.model.state_dict().items() if not torch.equal(value, repaired.state_dict()[key])
    ]
    assert changed, "compensation left every weight as it was"

    pruned = cleanai.PruneResult(**{**vars(result), "model": repaired})
    cleanai.save(pruned, tmp_path)
    section = ModelSection(name=name, num_classes=10, input_shape=(3, SIZES[name], SIZES[name]))
    loaded = cleanai.load(tmp_path, lambda: build_model(section, seed=1))
    with torch.no_grad():
        assert torch.equal(loaded.eval()(images), expected)

    repaired.train()(images).square().sum().backward()
    for key, parameter in repaired.named_parameters():
        assert parameter.grad is not None, key
        assert torch.isfinite(parameter.grad).all(), key


@pytest.mark.parametrize("name", SIZES)
def test_global_ratio_removes_that_share_of_all_channels(name: str) -> None:
    model, example, images, options = network(name, SIZES[name])
    result = cleanai.prune(model, example, method="magnitude", mode="global", ratio=0.3, **options)
    total = sum(group.num_channels // group.num_blocks for group in result.plan.groups)
    gone = sum(len(group.removed) // group.num_blocks for group in result.plan.groups)
    assert gone == total - int(total * 0.7 + 1e-9)
    with torch.no_grad():
        assert torch.isfinite(result.model.eval()(images)).all()


@pytest.mark.parametrize("name", SIZES)
def test_a_budget_is_met_from_below_within_two_percent(name: str) -> None:
    model, example, images, options = network(name, SIZES[name])
    result = cleanai.prune(model, example, method="magnitude", budget={"macs": 0.5}, **options)
    share = measure_complexity(result.model, example).macs / measure_complexity(model, example).macs
    assert 0.48 <= share <= 0.5
    with torch.no_grad():
        assert torch.isfinite(result.model.eval()(images)).all()


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_followed_is_refused_by_name(name: str) -> None:
    model, example, _, options = network(name, 64)
    with pytest.raises(PruningError, match=REFUSED[name]):
        cleanai.prune(model, example, method="magnitude", ratio=0.3, **options)


@pytest.mark.parametrize("name", ["resnet18", "vgg16_bn", "densenet121", "mobilenet_v2", "googlenet", "squeezenet1_1"])
def test_pruning_is_the_same_as_silencing_what_is_removed(name: str) -> None:
    """A dense copy in which no layer reads a removed channel computes what the pruned model does."""
    model, example, images, options = network(name, SIZES[name])
    result = cleanai.prune(model, example, method="magnitude", ratio=0.4, **options)
    for layer, kept in result.kept_inputs.items():
        module = model.get_submodule(layer)
        if isinstance(module, (nn.Conv2d, nn.Linear)) and getattr(module, "groups", 1) == 1:
            weight = module.weight.detach()
            silent = torch.ones(weight.shape[1], dtype=torch.bool)
            silent[torch.as_tensor(kept)] = False
            weight[:, silent] = 0
    with torch.no_grad():
        dense, pruned = model.eval()(images), result.model.eval()(images)
    torch.testing.assert_close(pruned, dense, rtol=1e-3, atol=1e-4 * float(dense.abs().max()))
