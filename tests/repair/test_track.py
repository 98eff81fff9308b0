"""The two models side by side: what each block reads is what the whole models give it, on channels that both have."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from pruned_nets import Case, cut, images_for, random_case
from torch import Tensor, nn
from torchvision.models import resnet18

from cleanai_ray.models.resnet20 import ResNetCifar
from cleanai_ray.nn.hooks import count_hooks
from cleanai_ray.repair import ModelPair
from cleanai_ray.repair.track import Feature, Track


def randomised(model: nn.Module) -> nn.Module:
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.3, 0.3)
    return model.double().eval()


def resnet20_case() -> tuple[Case, Tensor]:
    dense = randomised(ResNetCifar(10, 2, (6, 8, 10)))
    removed = {
        "conv1": [2, 5],
        "layer1.1.conv1": [0, 3],
        "layer2.0.conv2": [1],
        "layer3.0.conv2": [0, 9],
        "layer3.2.conv1": [4],
    }
    return cut(dense, removed), torch.randn(9, 2, 8, 8, dtype=torch.float64)


def resnet18_case() -> tuple[Case, Tensor]:
    dense = randomised(resnet18(num_classes=4))
    dense.conv1 = nn.Conv2d(2, 64, 3, padding=1, bias=False).double()
    removed = {
        "conv1": [3, 63],
        "layer1.0.conv1": [0, 1],
        "layer2.0.conv2": [5],
        "layer3.1.conv1": [7],
        "layer4.0.conv2": [9],
    }
    return cut(dense, removed), torch.randn(5, 2, 8, 8, dtype=torch.float64)


def case_of(name: str) -> tuple[Case, Tensor]:
    if name.startswith("resnet"):
        return {"resnet20": resnet20_case, "resnet18": resnet18_case}[name]()
    return random_case(name), images_for(name, 9, torch.float64)


def pair_of(case: Case) -> ModelPair:
    return case.pair(case.result.model)


@torch.no_grad()
def inputs_of(model: nn.Module, names: list[str], images: Tensor) -> dict[str, Tensor]:
    """What some modules read in a pass of the whole model."""
    seen: dict[str, Tensor] = {}
    handles = [
        model.get_submodule(name).register_forward_pre_hook(
            lambda module, args, name=name: seen.__setitem__(name, args[0].clone())
        )
        for name in names
    ]
    model(images)
    for handle in handles:
        handle.remove()
    return seen


NAMES = ["plain", "residual", "depthwise", "concat", "flattened", "vit", "resnet20", "resnet18"]


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_what_the_blocks_read_and_make_is_what_the_whole_models_give_them(name: str) -> None:
    case, images = case_of(name)
    pair = pair_of(case)
    track = Track(pair, images.split(4))
    starts = [track.segments[block.start].name for block in track.blocks[1:]]
    whole = [inputs_of(model, starts, images) for model in (pair.dense, pair.pruned)]
    assert torch.equal(torch.cat(track.dense), images)
    for number, block in enumerate(track.blocks):
        if number:
            track.advance()
            for found, seen in zip((track.dense, track.pruned), whole, strict=True):
                assert [len(batch) for batch in found] == [len(batch) for batch in images.split(4)]
                torch.testing.assert_close(torch.cat(found), seen[starts[number - 1]])
        assert track.block == block
        made = torch.cat([track.run_pruned(batch) for batch in track.pruned])
        expected = whole[1][starts[number]] if number < len(starts) else pair.pruned(images)
        torch.testing.assert_close(made, expected)
    assert number == len(starts) >= 1
    assert all(count_hooks(model) == 0 for model in (pair.dense, pair.pruned))


@pytest.mark.parametrize("name", NAMES)
def test_blocks_hold_every_layer_once_and_follow_one_another(name: str) -> None:
    case, images = case_of(name)
    pair = pair_of(case)
    track = Track(pair, [images])
    layers = [layer for block in track.blocks for layer in block.layers]
    weighted = [n for n, m in pair.dense.named_modules() if any(True for _ in m.parameters(recurse=False))]
    assert sorted(layers) == sorted(weighted)
    assert [block.stop for block in track.blocks[:-1]] == [block.start for block in track.blocks[1:]]
    assert track.blocks[0].start == 0
    assert track.blocks[-1].stop is None


def test_without_room_for_the_tensors_between_blocks_the_whole_model_is_one_block() -> None:
    case, images = case_of("resnet20")
    track = Track(pair_of(case), [images], memory_limit=1)
    assert len(track.blocks) == 1
    torch.testing.assert_close(track.run_pruned(images), case.result.model(images))
    torch.testing.assert_close(track.run_dense(images), case.dense(images))
    assert track.features == []


PRODUCERS = {
    # The module that begins a block, and a layer whose outputs are the channels that it reads.
    "resnet20": {"layer1.0": "conv1", "layer1.2": "conv1", "layer2.0": "layer1.2.conv2", "layer2.1": "layer2.0.conv2"},
    "resnet18": {"layer1.0": "conv1", "layer1.1": "conv1", "layer2.1": "layer2.0.conv2", "layer4.1": "layer4.0.conv2"},
}


@pytest.mark.parametrize("name", PRODUCERS)
@torch.no_grad()
def test_the_channels_of_a_feature_are_those_that_the_layer_before_it_kept(name: str) -> None:
    case, images = case_of(name)
    pair = pair_of(case)
    track = Track(pair, [images])
    features = {feature.module: feature for feature in track.features}
    assert len(features) == len(track.blocks) - 1
    for module, producer in PRODUCERS[name].items():
        found = features[module].channels
        assert found is not None
        assert found.tolist() == case.result.kept_outputs[producer].tolist()
        wide, narrow = (inputs_of(model, [module], images)[module] for model in (pair.dense, pair.pruned))
        assert features[module].of_dense(wide).shape == narrow.shape
    # Nothing is lost before the first block but channels.
    first = next(iter(PRODUCERS[name]))
    wide, narrow = (inputs_of(model, [first], images)[first] for model in (pair.dense, pair.pruned))
    torch.testing.assert_close(features[first].of_dense(wide), narrow)
    # A feature that has all of its channels is taken as it is.
    whole = Track(
        ModelPair(dense=case.dense, pruned=copy.deepcopy(case.dense), kept_inputs={}, kept_outputs={}), [images]
    )
    assert whole.features
    assert all(feature.channels is None for feature in whole.features)


def test_the_features_of_tokens_have_all_channels_where_only_hidden_units_were_pruned() -> None:
    case, images = case_of("vit")
    track = Track(pair_of(case), [images])
    assert len(track.features) == len(track.blocks) - 1
    assert all(feature.channels is None for feature in track.features)


def test_channels_are_taken_along_their_dimension() -> None:
    value = torch.arange(24.0).reshape(2, 3, 4)
    assert torch.equal(Feature(module="x").of_dense(value), value)
    kept = Feature(module="x", axis=2, channels=torch.tensor([3, 0]))
    assert kept.of_dense(value)[1].tolist() == [[15.0, 12.0], [19.0, 16.0], [23.0, 20.0]]


def test_what_a_layer_behind_flattening_gives_says_nothing_about_what_comes_before() -> None:
    """The Linear keeps three of its four outputs, and three channels of four are left before it: others."""

    def network(channels: int, outputs: int) -> nn.Sequential:
        first = nn.Sequential(nn.Conv2d(2, channels, 3), nn.ReLU())
        last = nn.Sequential(nn.Linear(channels * 4, outputs), nn.ReLU(), nn.Linear(outputs, 2))
        return nn.Sequential(
            *first,
            nn.MaxPool2d(2),
            nn.Conv2d(channels, channels, 1, groups=channels),
            nn.ReLU(),
            nn.MaxPool2d(1),
            nn.Flatten(),
            *last,
        ).eval()

    dense, pruned = network(4, 4), network(3, 3)
    features = np.concatenate([np.arange(4) + 4 * channel for channel in (0, 2, 3)])
    kept_inputs = {"7": features, "3": np.array([0, 2, 3]), "9": np.array([0, 1, 2])}
    kept_outputs = {"0": np.array([0, 2, 3]), "3": np.array([0, 2, 3]), "7": np.array([0, 1, 2])}
    models = ModelPair(dense=dense, pruned=pruned, kept_inputs=kept_inputs, kept_outputs=kept_outputs)
    track = Track(models, [torch.randn(4, 2, 6, 6)])
    found = {segment.name: track.feature(place) for place, segment in enumerate(track.segments)}
    assert found["5"] is None
    assert found["3"].channels.tolist() == [0, 2, 3]
    assert found["7"].channels.tolist() == features.tolist()
    assert found["9"].channels.tolist() == [0, 1, 2]


def test_a_view_of_the_first_batches_leaves_the_track_as_it_is() -> None:
    case, images = case_of("plain")
    track = Track(pair_of(case), images.split(2))
    track.advance()
    view = track.first(2)
    assert view.block is track.block
    assert (len(view.dense), len(view.pruned)) == (2, 2)
    assert (len(track.dense), len(track.pruned)) == (5, 5)
    assert all(torch.equal(one, other) for one, other in zip(view.pruned, track.pruned[:2], strict=True))


def test_one_image_is_enough() -> None:
    case, images = case_of("residual")
    track = Track(pair_of(case), [images[:1]])
    while track.block.stop is not None:
        track.advance()
    torch.testing.assert_close(track.run_pruned(track.pruned[0]), case.result.model(images[:1]))


def test_where_some_tensors_between_blocks_are_too_large_only_those_are_no_cuts() -> None:
    """The tensors of a ResNet shrink on the way: the early ones alone find no room."""
    case, images = case_of("resnet20")
    pair = pair_of(case)
    every = Track(pair, [images])
    starts = [every.segments[block.start].name for block in every.blocks[1:]]
    read = [inputs_of(model, starts, images) for model in (pair.dense, pair.pruned)]
    sizes = {name: sum(seen[name].numel() * seen[name].element_size() for seen in read) for name in starts}
    limit = sorted(sizes.values())[len(sizes) // 2]
    fewer = Track(pair, [images], memory_limit=limit)
    expected = [name for name in starts if sizes[name] <= limit]
    assert [fewer.segments[block.start].name for block in fewer.blocks[1:]] == expected
    assert 0 < len(expected) < len(starts)
    torch.testing.assert_close(fewer.run_dense(images), read[0][expected[0]])
