"""Batch-norm recalibration: it follows its definition, and changes nothing if nothing was pruned."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from pruned_nets import cut, images_for, random_case
from small_nets import NETS, build
from torch import Tensor, nn

from cleanai_ray.errors import CalibrationError, PruningError
from cleanai_ray.nn.hooks import count_hooks
from cleanai_ray.repair import recalibrate
from cleanai_ray.repair.batch_norm import collect_norm_sums


def norms(model: nn.Module) -> dict[str, nn.BatchNorm2d]:
    return {name: module for name, module in model.named_modules() if isinstance(module, nn.BatchNorm2d)}


@torch.no_grad()
def batch_statistics(model: nn.Module, batches: list[Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
    """Mean and unbiased variance of what each batch-norm reads in train mode, averaged over equal batches."""
    model = copy.deepcopy(model).train()
    found: dict[str, list[tuple[Tensor, Tensor]]] = {}
    for name, module in norms(model).items():

        def hook(module: nn.Module, args: tuple[Tensor], name: str = name) -> None:
            values = args[0].movedim(1, 0).flatten(1)
            found.setdefault(name, []).append((values.mean(1), values.var(1)))

        module.register_forward_pre_hook(hook)
    for batch in batches:
        model(batch)
    return {
        name: tuple(torch.stack(part).mean(0) for part in zip(*parts, strict=True)) for name, parts in found.items()
    }


@pytest.mark.parametrize("name", [name for name in NETS if name != "flattened"])
def test_relative_changes_nothing_where_nothing_was_pruned(name: str) -> None:
    dense = build(name)
    same = copy.deepcopy(dense)
    recalibrate(dense, same, images_for(name, 30).split(8), kind="relative", kept_outputs={})
    assert all(torch.equal(value, same.state_dict()[key]) for key, value in dense.state_dict().items())


def test_relative_leaves_layers_before_the_cut_and_moves_those_behind_it() -> None:
    case = cut(build("residual"), {"conv1": [0, 3, 7]})
    model = case.result.model
    before = copy.deepcopy(model)
    recalibrate(case.dense, model, images_for("residual", 30).split(8), kept_outputs=case.result.kept_outputs)
    assert torch.equal(model.bn0.running_mean, before.bn0.running_mean)
    assert torch.equal(model.bn1.running_var, before.bn1.running_var)
    assert not torch.equal(model.bn2.running_mean, before.bn2.running_mean)


@pytest.mark.parametrize("name", ["plain", "residual", "depthwise", "concat"])
def test_relative_by_its_definition(name: str) -> None:
    case, batches = random_case(name), list(images_for(name, 30, dtype=torch.float64).split(10))
    model = copy.deepcopy(case.result.model)
    recalibrate(case.dense, model, batches, kind="relative", kept_outputs=case.result.kept_outputs)
    dense, pruned = batch_statistics(case.dense, batches), batch_statistics(case.result.model, batches)
    originals = norms(case.dense)
    for layer, module in norms(model).items():
        original = originals[layer]
        kept = case.result.kept_outputs.get(layer, np.arange(original.num_features))
        mean = original.running_mean[kept] + pruned[layer][0] - dense[layer][0][kept]
        ratio = (pruned[layer][1] + module.eps) / (dense[layer][1][kept] + module.eps)
        assert torch.allclose(module.running_mean, mean, rtol=1e-10, atol=1e-12)
        assert torch.allclose(module.running_var, original.running_var[kept] * ratio, rtol=1e-10)


def test_reset_equals_torchs_cumulative_average() -> None:
    case, batches = random_case("residual"), list(images_for("residual", 30, dtype=torch.float64).split(10))
    ours, torchs = copy.deepcopy(case.result.model), copy.deepcopy(case.result.model).train()
    recalibrate(case.dense, ours, batches, kind="reset", kept_outputs=case.result.kept_outputs)
    for module in norms(torchs).values():
        module.reset_running_stats()
        module.momentum = None
    with torch.no_grad():
        for batch in batches:
            torchs(batch)
    for layer, module in norms(torchs).items():
        assert torch.allclose(norms(ours)[layer].running_mean, module.running_mean, rtol=1e-10, atol=1e-12)
        assert torch.allclose(norms(ours)[layer].running_var, module.running_var, rtol=1e-10)


def test_sums_of_shards_add_up() -> None:
    net, batches = build("residual"), list(images_for("residual", 30).split(8))
    whole = collect_norm_sums(net, batches)
    parts = collect_norm_sums(net, batches[:2]), collect_norm_sums(net, batches[2:])
    for layer, value in whole.items():
        merged = parts[1][layer] + parts[0][layer]
        assert merged.count == value.count == 30 * 64
        assert torch.allclose(merged.mean, value.mean, rtol=1e-12)
        assert torch.allclose(merged.variance, value.variance, rtol=1e-12)


def test_dropout_stays_off_and_the_model_is_left_as_it_was() -> None:
    net = nn.Sequential(nn.Conv2d(2, 4, 1), nn.Dropout(0.9), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(256, 2)).train()
    before = copy.deepcopy(net.state_dict())
    images = images_for("plain", 12)
    one, other = collect_norm_sums(net, [images]), collect_norm_sums(net, [images])
    assert torch.equal(one["2"].mean, other["2"].mean)
    assert torch.allclose(one["2"].mean, net[0](images).double().mean(dim=(0, 2, 3)), atol=1e-6)
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert all(module.training for module in net.modules())
    assert count_hooks(net) == 0


def test_statistics_keep_their_digits_in_every_layout() -> None:
    """Mean 1000 and variance 1 of 65,536 values a channel: sums in float32 would be wrong in the third digit."""
    net = nn.Sequential(nn.BatchNorm2d(3))
    images = images_for("plain", 1).new_empty(64, 3, 32, 32).normal_(generator=torch.Generator().manual_seed(0)) + 1000
    for value in (images, images.contiguous(memory_format=torch.channels_last)):
        sums = collect_norm_sums(net, [value])["0"]
        variance, mean = torch.var_mean(images.double(), dim=(0, 2, 3))
        assert torch.allclose(sums.mean, mean, rtol=1e-7)
        assert torch.allclose(sums.variance, variance, rtol=1e-5)


class ActiveNorm(nn.BatchNorm2d):
    """A batch-norm with an activation function of its own, as timm writes it."""

    def forward(self, value: Tensor) -> Tensor:
        return torch.relu(super().forward(value))


def test_a_batch_norm_of_its_own_kind_runs_its_own_code() -> None:
    net, images = nn.Sequential(ActiveNorm(2), nn.BatchNorm2d(2)), images_for("plain", 30, dtype=torch.float64)
    found = collect_norm_sums(net.double(), [images])["1"]
    variance, mean = torch.var_mean(images, dim=(0, 2, 3), correction=0)
    shape = (1, 2, 1, 1)
    expected = torch.relu((images - mean.view(shape)) / (variance.view(shape) + net[0].eps).sqrt())
    assert torch.allclose(found.mean, expected.mean(dim=(0, 2, 3)), rtol=1e-10)
    assert torch.allclose(found.variance, expected.var(dim=(0, 2, 3)), rtol=1e-10)


def test_a_model_that_fails_halfway_is_left_as_it_was() -> None:
    net = nn.Sequential(nn.BatchNorm2d(2), nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3), nn.Linear(5, 1)).train()
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(CalibrationError, match="samples 0 to 5"):
        collect_norm_sums(net, [images_for("plain", 6)])
    assert list(net.state_dict()) == list(before)
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert [module.momentum for module in (net[0], net[2])] == [0.1, 0.1]
    assert all(module.training for module in net.modules())
    assert count_hooks(net) == 0


def test_a_batch_without_a_variance_is_passed_over() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(128, 4), nn.BatchNorm1d(4))
    images = images_for("plain", 9)
    assert collect_norm_sums(net, images.split(8))["2"].count == 8


def test_wrong_kinds_empty_batches_and_bad_activations_are_refused() -> None:
    case, images = random_case("plain", torch.float32), images_for("plain", 4)
    kept = case.result.kept_outputs
    with pytest.raises(PruningError, match="batch_norm is 'best'; allowed: relative, reset"):
        recalibrate(case.dense, case.result.model, [images], kind="best", kept_outputs=kept)
    with pytest.raises(CalibrationError, match="hold none"):
        recalibrate(case.dense, case.result.model, [], kept_outputs=kept)
    with pytest.raises(CalibrationError, match="'bn1' are not finite"):
        recalibrate(case.dense, case.result.model, [images * float("inf")], kept_outputs=kept)
