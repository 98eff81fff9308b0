"""Compensation: nothing is lost that kept channels can predict, and the formula is least squares."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from pruned_nets import PLANTS, REMOVED, Case, cut, images_for, planted_case, random_case
from small_nets import build, tiny_vit
from torch import Tensor, nn

from cleanai_ray.errors import CalibrationError, PruningError
from cleanai_ray.nn import consumers
from cleanai_ray.nn.hooks import count_hooks
from cleanai_ray.repair import (
    ModelPair,
    RepairOptions,
    collect_moments,
    compensate_closed_form,
    compensate_sequential,
    repair,
)
from cleanai_ray.repair.compensation import narrowed_consumers
from cleanai_ray.repair.trace import trace_consumers

CONSUMERS = (nn.Conv2d, nn.Linear)


def closed_form(case: Case, images: Tensor, *, ridge: float, positions: int = 10_000) -> nn.Module:
    model = copy.deepcopy(case.result.model)
    features = narrowed_consumers(case.dense, case.result.kept_inputs)
    moments = collect_moments(
        case.dense, [images], layers=list(features), positions_per_sample=positions, features=features
    )
    compensate_closed_form(case.pair(model), moments, trace_consumers(model, images[:1]), ridge=ridge)
    return model


def sequential(case: Case, images: Tensor, *, ridge: float, **options: int) -> nn.Module:
    model = copy.deepcopy(case.result.model)
    compensate_sequential(case.pair(model), images.split(16), ridge=ridge, **options)
    return model


@torch.no_grad()
def distance(dense: nn.Module, other: nn.Module, images: Tensor) -> float:
    return float((dense(images) - other(images)).abs().max())


@torch.no_grad()
def inputs_of(model: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """The input of every plain convolution and linear layer at every position, [positions, channels]."""
    found: dict[str, Tensor] = {}
    handles = []
    for name, module in model.named_modules():
        if isinstance(module, CONSUMERS) and getattr(module, "groups", 1) == 1:

            def hook(module: nn.Module, args: tuple[Tensor], output: Tensor, name: str = name) -> None:
                x = args[0].movedim(1, -1) if isinstance(module, nn.Conv2d) else args[0]
                found[name] = x.reshape(-1, x.shape[-1]).clone()

            handles.append(module.register_forward_hook(hook))
    model(images)
    for handle in handles:
        handle.remove()
    return found


def with_constant(x: Tensor) -> Tensor:
    return torch.cat([x, torch.ones_like(x[:, :1])], dim=1)


def split_weight(module: nn.Module) -> Tensor:
    return module.weight.detach().flatten(2) if module.weight.dim() > 2 else module.weight.detach()[:, :, None]


@pytest.mark.parametrize("name", PLANTS)
@pytest.mark.parametrize("kind", [closed_form, sequential])
def test_removed_channels_that_are_combinations_of_kept_ones_lose_nothing(name: str, kind: object) -> None:
    case, images = planted_case(name), images_for(name)
    fresh = images_for(name, 90)[60:]
    assert distance(case.dense, case.result.model, fresh) > 0.01
    repaired = kind(case, images, ridge=1e-9)
    assert distance(case.dense, repaired, fresh) < 1e-4 * float(case.dense(fresh).detach().abs().max())


@pytest.mark.parametrize("name", REMOVED)
def test_the_closed_form_is_least_squares_on_what_the_dense_model_reads(name: str) -> None:
    case, images = random_case(name), images_for(name, dtype=torch.float64)
    repaired = closed_form(case, images, ridge=0.0)
    read = inputs_of(case.dense, images)
    checked = 0
    for layer, kept in case.result.kept_inputs.items():
        module = case.dense.get_submodule(layer)
        if layer not in read or not isinstance(module, CONSUMERS):
            continue
        removed = np.setdiff1d(np.arange(read[layer].shape[1]), kept)
        answer = torch.linalg.lstsq(
            with_constant(read[layer][:, kept]), read[layer][:, removed], driver="gelsd"
        ).solution
        rows = case.result.kept_outputs.get(layer, np.arange(module.weight.shape[0]))
        weight = split_weight(module)[rows]
        expected = weight[:, kept] + torch.einsum("orp,kr->okp", weight[:, removed], answer[:-1])
        assert torch.allclose(split_weight(repaired.get_submodule(layer)), expected, atol=1e-8)
        bias = module.bias.detach()[rows] + weight[:, removed].sum(2) @ answer[-1]
        assert torch.allclose(repaired.get_submodule(layer).bias.detach(), bias, atol=1e-8)
        checked += 1
    assert checked >= len(REMOVED[name]) - 1


@pytest.mark.parametrize("name", ["plain", "residual", "depthwise", "concat", "flattened"])
def test_sequential_is_least_squares_on_what_the_repaired_model_reads(name: str) -> None:
    case, images = random_case(name), images_for(name, 40, dtype=torch.float64)
    repaired = sequential(case, images, ridge=1e-12, positions_per_sample=10_000)
    dense_reads, repaired_reads = inputs_of(case.dense, images), inputs_of(repaired, images)
    changed = [layer for layer, z in repaired_reads.items() if not torch.equal(z, dense_reads[layer])]
    assert changed
    for layer in changed:
        module = case.dense.get_submodule(layer)
        rows = case.result.kept_outputs.get(layer, np.arange(module.weight.shape[0]))
        x, z = dense_reads[layer], repaired_reads[layer]
        answer = torch.linalg.lstsq(with_constant(z), x, driver="gelsd").solution
        weight, target = split_weight(module)[rows], repaired.get_submodule(layer)
        # Compared by what they compute: a channel that is always zero may have any weight.
        centred = z - z.mean(dim=0)
        expected = torch.einsum("mk,kc,ocp->mop", centred, answer[:-1], weight)
        assert torch.allclose(torch.einsum("mk,okp->mop", centred, split_weight(target)), expected, atol=1e-7)
        mean_output = weight.sum(2) @ x.mean(dim=0) + module.bias.detach()[rows]
        assert torch.allclose(
            split_weight(target).sum(2) @ z.mean(dim=0) + target.bias.detach(), mean_output, atol=1e-9
        )


@pytest.mark.parametrize("name", REMOVED)
def test_one_pass_and_a_pass_for_each_consumer_agree(name: str) -> None:
    case, images = random_case(name), images_for(name, 40, dtype=torch.float64)
    at_once = sequential(case, images, ridge=1e-3, positions_per_sample=9)
    in_turn = sequential(case, images, ridge=1e-3, positions_per_sample=9, memory_limit=0)
    for key, value in at_once.state_dict().items():
        assert torch.allclose(value, in_turn.state_dict()[key], rtol=1e-9, atol=1e-9), key


@pytest.mark.parametrize("memory_limit", [0, 2**40])
@pytest.mark.parametrize("name", REMOVED)
def test_sequential_leaves_a_model_that_reads_what_the_dense_one_reads(name: str, memory_limit: int) -> None:
    dense = random_case(name).dense
    same = copy.deepcopy(dense)
    images = images_for(name, 10, dtype=torch.float64)
    untouched = ModelPair(dense=dense, pruned=same, kept_inputs={}, kept_outputs={})
    assert compensate_sequential(untouched, [images], memory_limit=memory_limit) == ()
    assert all(torch.equal(value, same.state_dict()[key]) for key, value in dense.state_dict().items())


def test_layers_before_the_first_cut_stay_and_layers_behind_it_are_refitted() -> None:
    case = random_case("residual")
    model = copy.deepcopy(case.result.model)
    changed = compensate_sequential(case.pair(model), [images_for("residual", 10, dtype=torch.float64)])
    assert changed == ("conv1", "conv2", "head", "fc")
    assert torch.equal(model.stem.weight, case.result.model.stem.weight)


@pytest.mark.parametrize("projection", ["q_proj", "k_proj", "v_proj"])
def test_attention_projections_are_consumers(projection: str) -> None:
    """The in-projections of an encoder whose stream lost channels are least squares, too."""
    case = cut(tiny_vit().double(), {"conv_proj": [0, 8, 16, 24]})
    images = images_for("vit", 60, dtype=torch.float64)
    layer = f"encoder.layers.encoder_layer_0.self_attention.{projection}"
    module = case.dense.get_submodule(layer)
    reads: list[Tensor] = []
    handle = module.register_forward_pre_hook(lambda _, args: reads.append(args[0].detach().flatten(0, 1)))
    with torch.no_grad():
        case.dense(images)
    handle.remove()
    kept = case.result.kept_inputs[layer]
    removed = np.setdiff1d(np.arange(32), kept)
    answer = torch.linalg.lstsq(with_constant(reads[0][:, kept]), reads[0][:, removed], driver="gelsd").solution
    weight = module.weight.detach()
    target = closed_form(case, images, ridge=0.0).get_submodule(layer)
    # A layer norm without weights makes the channels sum to zero: several solutions, one prediction.
    predicted = reads[0][:, kept] @ target.weight.detach().T + target.bias.detach()
    read = with_constant(reads[0][:, kept])
    expected = reads[0][:, kept] @ weight[:, kept].T + read @ answer @ weight[:, removed].T
    assert torch.allclose(predicted, expected + module.bias.detach(), atol=1e-7)


def test_a_wide_flattened_input_is_compensated_channel_by_channel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(consumers, "MAX_FEATURES", 10)
    case, images = planted_case("flattened"), images_for("flattened")
    assert narrowed_consumers(case.dense, case.result.kept_inputs)["fc1"] == 4
    for kind in (closed_form, sequential):
        repaired = kind(case, images, ridge=1e-9)
        assert distance(case.dense, repaired, images) < 1e-4 * float(case.dense(images).detach().abs().max())


def test_a_wide_flattened_input_of_unknown_channels_is_named() -> None:
    linear = nn.Linear(consumers.MAX_FEATURES + 2, 2)
    assert consumers.features_per_channel(linear, None) is None
    assert consumers.features_per_channel(linear, np.arange(1, linear.in_features)) is None
    assert consumers.features_per_channel(linear, np.arange(2, linear.in_features)) == 2
    assert consumers.features_per_channel(nn.Linear(20, 2), np.arange(4)) == 1


def test_a_grouped_convolution_is_skipped_by_name() -> None:
    case = cut(build("grouped"), {"conv1": [0, 4]})
    outcome = repair(
        case.dense, case.result, [images_for("plain")], RepairOptions(compensation="closed_form", batch_norm="none")
    )
    assert outcome.skipped == ("grouped",)
    assert torch.equal(outcome.model.grouped.weight, case.result.model.grouped.weight)


@pytest.mark.parametrize("kind", [closed_form, sequential])
def test_the_dense_model_is_left_alone(kind: object) -> None:
    case, images = random_case("residual", torch.float32), images_for("residual", 20)
    case.dense.train()
    before = copy.deepcopy(case.dense.state_dict())
    repaired = kind(case, images, ridge=1e-3)
    assert all(torch.equal(value, before[key]) for key, value in case.dense.state_dict().items())
    assert count_hooks(case.dense) == count_hooks(repaired) == 0
    assert all(module.training for module in case.dense.modules())


def test_a_batch_that_cannot_be_run_stops_repair_and_no_hook_is_left() -> None:
    case = random_case("plain", torch.float32)
    good, bad = images_for("plain", 4), torch.zeros(3, 5, 8, 8)
    with pytest.raises(CalibrationError, match="samples 4 to 6"):
        compensate_sequential(case.pair(case.result.model), [good, bad])
    with pytest.raises(CalibrationError, match="samples 4 to 6"):
        collect_moments(case.dense, [good, bad], layers=["conv2"])
    assert count_hooks(case.dense) == count_hooks(case.result.model) == 0


def test_a_negative_ridge_is_refused() -> None:
    with pytest.raises(PruningError, match="ridge is -1; allowed: at least 0"):
        closed_form(random_case("plain"), images_for("plain", 8, dtype=torch.float64), ridge=-1)
