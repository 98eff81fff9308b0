"""Sequential repair with any memory gives the same weights, in few passes, and 16 bits between blocks change little."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from pruned_nets import REMOVED, Case, images_for, random_case
from torch import Tensor, nn

import cleanai_ray as cleanai
from cleanai_ray.config.sections import DataSection, ModelSection
from cleanai_ray.data import open_image_source
from cleanai_ray.data.batching import batches
from cleanai_ray.models import build_model
from cleanai_ray.models.resnet20 import ResNetCifar
from cleanai_ray.nn.half import HalfBatches
from cleanai_ray.repair import ModelPair, compensate_sequential, compensate_unfolded, sequential, track, unfolded

HALF_TOLERANCE = 2e-3
"""Relative change of a layer's weights by 16 bits between blocks, which change each value by up to 5e-4 of itself."""


def repaired(case: Case, images: Tensor, **options: object) -> nn.Module:
    model = copy.deepcopy(case.result.model)
    compensate_sequential(case.pair(model), images.split(16), **options)
    return model


def activations(case: Case, images: Tensor) -> int:
    """Bytes that the images take in one pass."""
    first = images[:1]
    plan = sequential._plan(case.pair(case.result.model), first, 1e-3, 64)
    return len(images) * sequential._bytes_per_sample(plan, list(plan.consumers), case.dense, first)


@contextmanager
def tracks() -> Iterator[list[track.Track]]:
    """The tracks on which models are repaired meanwhile."""
    found: list[track.Track] = []

    def made(*args: object, **options: object) -> track.Track:
        found.append(track.Track(*args, **options))
        return found[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sequential, "Track", made)
        yield found


@pytest.mark.parametrize("share", [0.99, 0.3, 0.1, 0.0])
@pytest.mark.parametrize("name", REMOVED)
def test_with_a_part_of_the_memory_the_weights_are_those_of_one_pass(name: str, share: float) -> None:
    case, images = random_case(name), images_for(name, 40, dtype=torch.float64)
    with tracks() as none:
        whole = repaired(case, images, memory_limit=1 << 40)
    with tracks() as found:
        parts = repaired(case, images, memory_limit=int(share * activations(case, images)))
    assert (len(none), len(found)) == (0, 1)
    assert (len(found[0].blocks) > 1) == (share > 0)
    for key, value in whole.state_dict().items():
        torch.testing.assert_close(parts.state_dict()[key], value, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["residual", "vit"])
def test_the_limit_is_what_the_device_has_and_with_less_the_weights_are_the_same(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    case, images = random_case(name), images_for(name, 40, dtype=torch.float64)
    found = {}
    for free in (1 << 40, activations(case, images) // 2, 0):
        for module in (sequential, track, unfolded):
            monkeypatch.setattr(module, "working_bytes", lambda device, free=free: free)
        with tracks() as made:
            refitted = repaired(case, images)
        assert len(made) == (free < 1 << 40)
        unfolded_model = copy.deepcopy(case.result.model)
        compensate_unfolded(case.pair(unfolded_model), images.split(16), ridge=1e-2)
        found[free] = refitted.state_dict(), unfolded_model.state_dict()
    whole = found.pop(1 << 40)
    for states in found.values():
        for one, other in zip(whole, states, strict=True):
            for key, value in one.items():
                torch.testing.assert_close(other[key], value, rtol=1e-6, atol=1e-8)


def times_of_the_first_layer(pair: ModelPair, images: Tensor, limit: int) -> float:
    """How often the dense model's first layer reads all images, besides the tracing with one or two of them."""
    runs: list[int] = []
    layer = pair.dense.conv1
    own = layer.forward
    layer.forward = lambda value: runs.append(len(value)) or own(value)
    compensate_sequential(pair, images.split(16), memory_limit=limit)
    layer.forward = own
    return sum(number for number in runs if number == 16) / len(images)


def test_with_room_between_blocks_the_first_layer_runs_once_and_not_for_every_consumer() -> None:
    model = ResNetCifar(10, 2, (6, 8, 10)).eval()
    result = cleanai.prune(model, torch.randn(1, 2, 16, 16), method="magnitude", ratio=0.3)
    images = torch.randn(48, 2, 16, 16)

    def pair() -> ModelPair:
        pruned = copy.deepcopy(result.model)
        return ModelPair(dense=model, pruned=pruned, kept_inputs=result.kept_inputs, kept_outputs=result.kept_outputs)

    assert times_of_the_first_layer(pair(), images, 1 << 40) == 1
    # 4 bytes x 6 channels x 16 x 16 pixels in two models, for each of 48 images.
    between = 2 * 48 * 4 * 6 * 16 * 16
    assert times_of_the_first_layer(pair(), images, between) == 1
    # Without any: for each other consumer, up to which the whole model runs.
    consumers = sum(isinstance(module, (nn.Conv2d, nn.Linear)) for module in model.modules())
    assert times_of_the_first_layer(pair(), images, 1) == consumers - 1


@pytest.fixture(scope="module")
def reference(reference_weights: Path, fashion_mnist_root: Path) -> tuple[Case, Tensor]:
    """The reference network at half of its channels, and 320 training images."""
    spec = ModelSection(name="resnet20", input_shape=(1, 28, 28), weights=str(reference_weights))
    model = build_model(spec)
    source = open_image_source(DataSection(name="fashion_mnist", root=str(fashion_mnist_root)), spec)
    ((images, _),) = batches(source.dataset("train"), range(320), 320)
    return Case(model, cleanai.prune(model, images[:1], method="magnitude", ratio=0.5)), images


def test_sixteen_bits_between_blocks_change_the_reference_network_by_less_than_the_tolerance(
    reference: tuple[Case, Tensor],
) -> None:
    case, images = reference
    limit = int(0.5 * activations(case, images))
    with tracks() as made:
        full = repaired(case, images, memory_limit=limit, half=False)
        half = repaired(case, images, memory_limit=limit, half=True)
        plain = repaired(case, images, memory_limit=limit)
    assert all(len(each.blocks) == 11 for each in made)
    assert [isinstance(each.dense, HalfBatches) for each in made] == [False, True, False]
    changes = []
    for name, module in full.named_modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            change = (half.get_submodule(name).weight - module.weight).norm() / module.weight.norm()
            changes.append(float(change))
    assert 0 < max(changes) < HALF_TOLERANCE
    # On a processor, 16 bits are not the default.
    assert all(torch.equal(value, plain.state_dict()[key]) for key, value in full.state_dict().items())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("share", [2.0, 0.5])
def test_a_gpu_repairs_as_the_processor_does(reference: tuple[Case, Tensor], share: float) -> None:
    case, images = reference
    limit = int(share * activations(case, images))
    here = repaired(case, images, memory_limit=limit).state_dict()
    there_case = Case(
        copy.deepcopy(case.dense).cuda(), replace(case.result, model=copy.deepcopy(case.result.model).cuda())
    )
    there = repaired(there_case, images, memory_limit=limit).state_dict()
    for key, value in here.items():
        if value.dim() > 1:
            assert float((there[key].cpu() - value).norm() / value.norm()) < HALF_TOLERANCE, key
