from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from small_nets import NETS, batches, build, tiny_vit
from torch import Tensor, nn
from torch.nn import functional

from cleanai_ray import calibrate
from cleanai_ray.errors import CalibrationError, DataError
from cleanai_ray.statistics import LayerStatistics

HOOK_TABLES = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def count_hooks(model: nn.Module) -> int:
    return sum(len(getattr(module, table)) for module in model.modules() for table in HOOK_TABLES)


def state(model: nn.Module) -> dict[str, Any]:
    """Everything about a model that a calibration could disturb."""
    return {
        "tensors": {name: value.clone() for name, value in model.state_dict().items()},
        "gradients": {n: None if p.grad is None else p.grad.clone() for n, p in model.named_parameters()},
        "requires_grad": {name: value.requires_grad for name, value in model.named_parameters()},
        "training": {name: module.training for name, module in model.named_modules()},
        "hooks": count_hooks(model),
    }


def assert_untouched(model: nn.Module, before: dict[str, Any]) -> None:
    after = state(model)
    for key in ("requires_grad", "training", "hooks"):
        assert after[key] == before[key]
    for key in ("tensors", "gradients"):
        assert after[key].keys() == before[key].keys()
        for name, value in before[key].items():
            assert (value is None) == (after[key][name] is None), name
            assert value is None or torch.equal(value, after[key][name]), name


def disturbed_model() -> nn.Module:
    """A model with mixed modes, a frozen parameter and gradients of its own."""
    model = build("residual")
    model.train()
    model.bn1.eval()
    model.conv1.weight.requires_grad_(False)
    images, targets = batches()[0]
    functional.cross_entropy(model(images), targets).backward()
    return model


class Refuses(nn.Module):
    """Raises on images whose first pixel is above 100."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 3, 1)
        self.fc = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        if x.abs().max() > 100:
            raise RuntimeError("the image is too bright")
        return self.fc(x.mean(dim=(2, 3)))


@pytest.mark.parametrize("gradients", [False, True])
def test_the_model_is_left_as_it_was(gradients: bool) -> None:
    model = disturbed_model()
    before = state(model)
    calibrate(model, batches(), outputs=True, gradients=gradients)
    assert_untouched(model, before)


@pytest.mark.parametrize("gradients", [False, True])
def test_the_model_is_left_as_it_was_by_a_batch_that_raises(gradients: bool) -> None:
    model = Refuses().train()
    model.fc.eval()
    before = state(model)
    data = batches(sizes=(5, 7, 4))
    data[1][0][3] += 1e4
    with pytest.raises(CalibrationError, match="samples 5 to 11: the image is too bright"):
        calibrate(model, data, outputs=True, gradients=gradients)
    assert_untouched(model, before)


@pytest.mark.parametrize("name", NETS)
def test_no_hook_outlives_a_calibration(name: str) -> None:
    model = build(name)
    calibrate(model, batches(), outputs=True)
    assert count_hooks(model) == 0


def test_hooks_of_the_users_own_stay_and_see_the_pass() -> None:
    model, seen = build("plain"), []
    model.conv1.register_forward_hook(lambda *_: seen.append(1))
    calibrate(model, batches(sizes=(5, 7, 4)))
    assert count_hooks(model) == 1
    assert len(seen) == 3


def test_a_wrong_shape_names_the_samples() -> None:
    data = batches(sizes=(2, 3))
    data[1] = (torch.zeros(3, 9, 8, 8), data[1][1])
    with pytest.raises(CalibrationError, match="samples 2 to 4"):
        calibrate(build("plain"), data)


def test_a_batch_that_cannot_be_read_is_named() -> None:
    def broken() -> Iterator[Any]:
        yield batches()[0]
        raise OSError("the disk is gone")

    model = build("plain")
    with pytest.raises(CalibrationError, match="batch 1 cannot be read: the disk is gone"):
        calibrate(model, broken())
    assert count_hooks(model) == 0


def test_an_error_of_the_data_set_passes_through() -> None:
    def broken() -> Iterator[Any]:
        yield batches()[0]
        raise DataError("image 17 of split 'train' is cut off")

    with pytest.raises(DataError, match="image 17"):
        calibrate(build("plain"), broken())


def test_no_batch_is_an_error() -> None:
    with pytest.raises(CalibrationError, match="no batch was run"):
        calibrate(build("plain"), [])


def test_activations_that_are_not_finite_name_the_layer_that_received_them() -> None:
    model = build("plain")
    with torch.no_grad():
        model.bn1.bias[2] = float("inf")
    with pytest.raises(CalibrationError, match="inputs of layer 'conv2' are not finite"):
        calibrate(model, batches())
    data = batches()
    data[2][0][1, 0, 3, 3] = float("nan")
    with pytest.raises(CalibrationError, match="inputs of layer 'conv1' are not finite"):
        calibrate(build("plain"), data)


def test_outputs_that_are_not_finite_name_the_layer_that_computed_them() -> None:
    model = build("plain")
    with torch.no_grad():
        model.fc.bias[0] = float("nan")
    calibrate(model, batches())
    with pytest.raises(CalibrationError, match="outputs of layer 'fc' are not finite"):
        calibrate(model, batches(), outputs=True)


@pytest.mark.parametrize("name", ["plain", "depthwise", "flattened"])
def test_the_batch_size_does_not_matter(name: str) -> None:
    model = build(name)
    ((images, targets),) = batches(sizes=(16,))
    reference = calibrate(model, [(images, targets)], outputs=True)
    for size in (1, 3, 16):
        pairs = list(zip(images.split(size), targets.split(size), strict=True))
        found = calibrate(model, pairs, outputs=True)
        for side in ("inputs", "outputs"):
            for layer, expected in getattr(reference, side).items():
                value = getattr(found, side)[layer]
                assert value.num_samples == expected.num_samples == 16
                for field in ("mean", "root_mean_square", "standard_deviation", "minimum", "maximum"):
                    torch.testing.assert_close(getattr(value, field), getattr(expected, field), rtol=1e-4, atol=1e-5)


def test_gradient_magnitudes_are_summed_over_batches() -> None:
    model, data = build("residual"), batches(sizes=(5, 7, 4))
    found = calibrate(model, data, gradients=True)
    expected: dict[str, Tensor] = {}
    for images, targets in data:
        twin = copy.deepcopy(model)
        functional.cross_entropy(twin(images), targets, reduction="sum").backward()
        for name, parameter in twin.named_parameters():
            assert parameter.grad is not None
            expected[name] = expected.get(name, 0) + parameter.grad.double().abs()
    assert found.gradients.keys() == expected.keys()
    assert found.num_gradient_samples == 16
    for name, value in expected.items():
        torch.testing.assert_close(found.gradients[name], value, rtol=1e-3, atol=1e-5)


def test_squared_gradients_are_those_of_single_samples() -> None:
    model, data = build("residual"), batches(sizes=(5, 4))
    expected: dict[str, Tensor] = {}
    for images, targets in data:
        for image, target in zip(images, targets, strict=True):
            twin = copy.deepcopy(model)
            functional.cross_entropy(twin(image[None]), target[None]).backward()
            for name, parameter in twin.named_parameters():
                assert parameter.grad is not None
                expected[name] = expected.get(name, 0) + parameter.grad.double().square()
    found = calibrate(model, data, squared_gradients=True)
    assert found.squared_gradients.keys() == expected.keys()
    assert found.num_gradient_samples == 9
    assert not found.gradients
    for name, value in expected.items():
        torch.testing.assert_close(found.squared_gradients[name], value, rtol=1e-4, atol=1e-9)


def test_squared_gradients_do_not_depend_on_the_batches() -> None:
    model, ((images, targets),) = build("plain"), batches(sizes=(9,))
    whole = calibrate(model, [(images, targets)], squared_gradients=True)
    cut = calibrate(model, list(zip(images.split(2), targets.split(2), strict=True)), squared_gradients=True)
    for name, value in whole.squared_gradients.items():
        torch.testing.assert_close(cut.squared_gradients[name], value, rtol=1e-6, atol=1e-12)


def test_collecting_gradients_changes_nothing_else() -> None:
    model, data = build("residual"), batches()
    both = calibrate(model, data, gradients=True, squared_gradients=True)
    alone = calibrate(model, data, gradients=True)
    assert all(torch.equal(value, alone.gradients[name]) for name, value in both.gradients.items())
    for name, value in both.inputs.items():
        assert torch.equal(value.sum, alone.inputs[name].sum)
        assert value.num_samples == alone.inputs[name].num_samples == 16


def test_a_loss_of_the_users_own_is_used() -> None:
    model, data = build("plain"), batches(sizes=(4,))
    found = calibrate(model, data, gradients=True, loss=lambda output, _: output[:, 1].mean())
    # The derivative of output 1 with respect to its own bias is 1 for every sample, and 0 for the other outputs.
    torch.testing.assert_close(found.gradients["fc.bias"], torch.tensor([0.0, 4.0, 0.0], dtype=torch.float64))


def test_gradients_without_targets_are_refused() -> None:
    with pytest.raises(CalibrationError, match="this batch has no targets"):
        calibrate(build("plain"), [batches()[0][0]], gradients=True)
    with pytest.raises(CalibrationError, match="this batch has no targets"):
        calibrate(build("plain"), [batches()[0][0]], squared_gradients=True)


def test_images_alone_give_the_same_activations_as_pairs() -> None:
    model, data = build("plain"), batches()
    pairs, alone = calibrate(model, data), calibrate(model, [images for images, _ in data])
    assert pairs.to_bytes() == alone.to_bytes()


def test_it_works_inside_no_grad() -> None:
    with torch.no_grad():
        found = calibrate(build("plain"), batches(), gradients=True)
    assert any(value.abs().sum() > 0 for value in found.gradients.values())


def slow_statistics(activations: Tensor) -> dict[str, list[float]]:
    """Moments of x[i, c, p], by loops."""
    found: dict[str, list[float]] = {"mean": [], "root_mean_square": [], "minimum": [], "maximum": []}
    for channel in range(activations.shape[1]):
        values = [float(x) for sample in activations for x in sample[channel]]
        found["mean"].append(sum(values) / len(values))
        found["root_mean_square"].append((sum(x * x for x in values) / len(values)) ** 0.5)
        found["minimum"].append(min(values))
        found["maximum"].append(max(values))
    return found


def assert_moments(found: LayerStatistics, activations: Tensor) -> None:
    for name, expected in slow_statistics(activations).items():
        torch.testing.assert_close(getattr(found, name), torch.tensor(expected).double(), rtol=1e-5, atol=1e-6)


def test_channels_of_each_layout_are_found() -> None:
    """Conv2d [N, C, H, W], Linear on tokens [N, T, C], Linear on features [N, C] and attention, from stored tensors."""
    model, data = tiny_vit(), batches(size=16, channels=3, sizes=(3, 2))
    stored: dict[str, list[Tensor]] = {}
    names = ("conv_proj", "encoder.layers.encoder_layer_1.mlp.3", "heads.head")
    attention = "encoder.layers.encoder_layer_0.self_attention"
    handles = [
        model.get_submodule(name).register_forward_hook(
            lambda _, inputs, output, name=name: stored.setdefault(name, []).append(inputs[0].detach())
        )
        for name in (*names, attention)
    ]
    with torch.no_grad():
        for images, _ in data:
            model(images)
    for handle in handles:
        handle.remove()
    found = calibrate(model, data)
    assert_moments(found.inputs["conv_proj"], torch.cat(stored["conv_proj"]).flatten(2))
    for name in (names[1], attention):
        assert stored[name][0].shape[1] == 17
        layers = [f"{attention}.{part}" for part in ("q_proj", "k_proj", "v_proj")] if name == attention else [name]
        for layer in layers:
            assert_moments(found.inputs[layer], torch.cat(stored[name]).transpose(1, 2))
            assert int(found.inputs[layer].num_positions) == 5 * 17
    assert_moments(found.inputs["heads.head"], torch.cat(stored["heads.head"])[:, :, None])
