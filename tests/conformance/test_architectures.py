"""Networks of every kind: each is pruned, run, trained a step, saved, loaded and compensated."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import cleanai_ray as cleanai
from cleanai_ray.config.sections import ModelSection
from cleanai_ray.errors import PruningError
from cleanai_ray.graph.graph import ChannelGraph
from cleanai_ray.models import build_model, example_input, ignored_layers
from cleanai_ray.nn.attention import HeadChannels
from cleanai_ray.nn.complexity import measure_complexity
from cleanai_ray.nn.open_attention import open_attention
from cleanai_ray.repair import RepairOptions, repair

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
    "shufflenet_v2_x0_5": 64,
    "swin_t": 224,
}
# What a closed form does not reach: convolutions in groups that are not depthwise.
GROUPED = {"regnet_y_400mf": "b.0"}


# Blocks in a row that are all alike, and how many of twelve are enough.
ALIKE = {"vit_b_16": ("encoder.layers", 3)}


def lightened(section: ModelSection, seed: int = 0) -> nn.Module:
    """The network of a section, without what costs gigabytes and minutes and is of no other kind than the rest."""
    model = build_model(section, seed=seed)
    if section.name in ALIKE:
        blocks, number = ALIKE[section.name]
        del model.get_submodule(blocks)[number:]
    if section.name == "vgg16_bn":  # each channel is 4 inputs of the classifier instead of 49, which has 512 units
        model.avgpool = nn.AdaptiveAvgPool2d(2)
        for place, width, outputs in ((0, 4 * 512, 512), (3, 512, 512), (6, 512, 10)):
            model.classifier[place] = nn.Linear(width, outputs)
    return model


def network(name: str, size: int, build: Any = build_model) -> tuple[nn.Module, Tensor, Tensor, dict[str, Any]]:
    section = ModelSection(name=name, num_classes=10, input_shape=(3, size, size))
    images = torch.randn(4, 3, size, size, generator=torch.Generator().manual_seed(1))
    model, ignored = build(section), ignored_layers(section)
    awaken(model, ignored[0], size)
    return model, example_input(section), images, {"ignored_layers": ignored}


@torch.no_grad()
def awaken(model: nn.Module, classifier: str, size: int) -> None:
    """Make a new network's outputs depend on its inputs, through every block, so that a wrong channel shows in them.

    torchvision begins with blocks that next to nothing passes through, or with a classifier of zeros.
    """
    generator = torch.Generator().manual_seed(2)
    model.get_submodule(classifier).weight.normal_(std=0.1, generator=generator)
    for key, parameter in model.named_parameters():
        if key.endswith("layer_scale"):
            parameter.fill_(1.0)
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.train().momentum = 1.0
    if norms:
        model(torch.randn(16, 3, size, size, generator=generator))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.eval().momentum = momentum


def share_of_channels(result: cleanai.PruneResult) -> dict[str, float]:
    return {group.name: len(group.removed) / group.num_channels for group in result.plan.groups}


@pytest.fixture(scope="module", params=list(SIZES))
def made(request: pytest.FixtureRequest) -> tuple[str, Any]:
    """The name of a network and what `network` gives; pruning leaves it alone, so that several tests share it."""
    return request.param, network(request.param, SIZES[request.param], lightened)


def test_local_ratio_runs_trains_saves_and_is_compensated(made: tuple[str, Any], tmp_path: Path) -> None:
    name, (model, example, images, options) = made
    result = cleanai.prune(model, example, method="magnitude", ratio=0.3, round_to=None, **options)
    shares = share_of_channels(result)
    blocks = {group.name: group.num_blocks for group in result.plan.groups}
    for group in result.plan.groups:  # Of 10 channels 7 are kept, of 16 int(11.2) = 11: less than one unit more goes.
        assert 0.3 - 1e-9 <= shares[group.name] < 0.3 + blocks[group.name] / group.num_channels, group.name
    outcome = repair(model, result, [images], RepairOptions(compensation="closed_form", batch_norm="none"))
    assert all(GROUPED.get(name, "no other layer") in layer for layer in outcome.skipped), outcome.skipped
    repaired = outcome.model
    with torch.no_grad():
        expected = repaired.eval()(images)
    assert torch.isfinite(expected).all()
    assert float((expected[0] - expected[1]).abs().max()) > 1e-3, "the outputs do not depend on the images"
    changed = [
        key for key, value in result.model.state_dict().items() if not torch.equal(value, repaired.state_dict()[key])
    ]
    assert changed, "compensation left every weight as it was"

    pruned = cleanai.PruneResult(**{**vars(result), "model": repaired})
    cleanai.save(pruned, tmp_path)
    section = ModelSection(name=name, num_classes=10, input_shape=(3, SIZES[name], SIZES[name]))
    loaded = cleanai.load(tmp_path, lambda: lightened(section, seed=1))
    with torch.no_grad():
        assert torch.equal(loaded.eval()(images), expected)

    repaired.train()(images).square().sum().backward()
    for key, parameter in repaired.named_parameters():
        assert parameter.grad is not None, key
        assert torch.isfinite(parameter.grad).all(), key


def test_global_ratio_removes_that_share_of_all_channels(made: tuple[str, Any]) -> None:
    _, (model, example, images, options) = made
    result = cleanai.prune(model, example, method="magnitude", mode="global", ratio=0.3, round_to=None, **options)
    total = sum(group.num_channels for group in result.plan.groups)
    gone = sum(len(group.removed) for group in result.plan.groups)
    goal = total - int(total * 0.7 + 1e-9)
    assert goal <= gone < goal + max(group.num_blocks for group in result.plan.groups)
    with torch.no_grad():
        assert torch.isfinite(result.model.eval()(images)).all()


def test_a_budget_is_met_from_below_within_two_percent(made: tuple[str, Any]) -> None:
    _, (model, example, images, options) = made
    result = cleanai.prune(model, example, method="magnitude", budget={"macs": 0.5}, **options)
    share = measure_complexity(result.model, example).macs / measure_complexity(model, example).macs
    assert 0.48 <= share <= 0.5
    with torch.no_grad():
        assert torch.isfinite(result.model.eval()(images)).all()


def test_a_budget_beyond_what_can_be_narrowed_is_refused() -> None:
    """Of swin_t the parts of attention and the hidden layers can, and not the layers between its stages."""
    model, example, _, options = network("swin_t", 64)
    with pytest.raises(PruningError, match="the budget cannot be met"):
        cleanai.prune(model, example, method="magnitude", budget={"macs": 0.05}, **options)


def test_layers_whose_channels_are_shuffled_keep_their_width() -> None:
    """Free are the stem, the head, and in each of the 4 + 8 + 4 units what is between the 1x1 convolutions."""
    model, example, _, options = network("shufflenet_v2_x0_5", 64)
    result = cleanai.prune(model, example, method="magnitude", ratio=0.3, **options)
    units = {2: 4, 3: 8, 4: 4}
    inner = {f"stage{stage}.{unit}.branch2" for stage, number in units.items() for unit in range(number)}
    expected = {
        "conv1.0": ("conv1.0", "conv1.1", "stage2.0.branch1.0", "stage2.0.branch1.1"),
        "conv5.0": ("conv5.0", "conv5.1"),
    }
    expected |= {f"{block}.3": tuple(f"{block}.{layer}" for layer in (0, 1, 3, 4)) for block in inner}
    found = {group.name: tuple(sorted(group.outputs)) for group in result.plan.groups}
    assert found == expected


def test_windows_keep_the_width_of_the_stream() -> None:
    """In each of the 2 + 2 + 6 + 2 blocks of swin_t the hidden layer is free, read by the second layer alone.

    So are the heads, the query and the value dimensions of attention.
    """
    model, example, _, options = network("swin_t", 32)
    result = cleanai.prune(model, example, method="magnitude", ratio=0.3, **options)
    blocks = [
        f"features.{stage}.{block}" for stage, number in ((1, 2), (3, 2), (5, 6), (7, 2)) for block in range(number)
    ]
    hidden = {f"{block}.mlp.0": ((f"{block}.mlp.0",), (f"{block}.mlp.3",)) for block in blocks}
    attention = {f"{block}.attn.{part}" for block in blocks for part in ("heads", "query", "value")}
    found = {group.name: (group.outputs, group.inputs) for group in result.plan.groups}
    assert found.keys() == hidden.keys() | attention
    assert {name: found[name] for name in hidden} == hidden


@torch.no_grad()
def silence(module: nn.Conv2d | nn.Linear, kept: np.ndarray) -> None:
    """Set to zero the weights of a layer that read other input channels than those kept."""
    blocks = module.groups if isinstance(module, nn.Conv2d) else 1
    width, keep = module.weight.shape[1], set(kept.tolist())
    for block, rows in enumerate(module.weight.chunk(blocks)):
        channels = range(block * width, (block + 1) * width)
        rows[:, [channel - block * width for channel in channels if channel not in keep]] = 0


def silence_dimensions(module: HeadChannels, kept: np.ndarray) -> None:
    """Set to zero the queries, keys or values that were removed."""
    stays = torch.zeros(module.num_channels)
    stays[torch.as_tensor(kept)] = 1
    module.register_forward_pre_hook(lambda _, args: args[0] * stays)


def normalised_streams(model: nn.Module, example: Tensor) -> list[str]:
    """The groups that a layer-norm reads: it divides by a deviation over all channels, so silence is not absence."""
    groups = ChannelGraph(model, example).groups
    return [group.name for group in groups if any("LayerNorm" in member.type for member in group.members)]


def test_pruning_is_the_same_as_silencing_what_is_removed(made: tuple[str, Any]) -> None:
    """A dense copy in which no layer reads a removed channel computes what the pruned model does."""
    name, parts = made
    model, example, images, options = network(name, 64) if name == "swin_t" else parts
    ignored = [*options["ignored_layers"], *normalised_streams(model, example)]
    result = cleanai.prune(model, example, method="magnitude", ratio=0.4, ignored_layers=ignored)
    model = copy.deepcopy(open_attention(model))
    with torch.no_grad():
        pruned = result.model.eval()(images)
        untouched = model.eval()(images)
        for layer, kept in result.kept_inputs.items():
            module = model.get_submodule(layer)
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                silence(module, kept)
            elif isinstance(module, HeadChannels):
                silence_dimensions(module, kept)
        dense = model(images)
    scale = float(dense.abs().max())
    assert float((dense - untouched).abs().max()) > 1e-2 * scale, "nothing was silenced"
    torch.testing.assert_close(pruned, dense, rtol=1e-3, atol=1e-4 * scale)
