"""The unfolded refit against least squares on unfolded images, and redundancy and errors planted for it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from pruned_nets import Case, cut, images_for, planted_case, random_case, tokens_pair
from small_nets import build, tiny_vit
from torch import Tensor, nn
from torch.nn import functional

from cleanai_ray.errors import CalibrationError
from cleanai_ray.nn.hooks import count_hooks
from cleanai_ray.repair import ModelPair, unfolded
from cleanai_ray.repair.track import Track
from cleanai_ray.repair.unfolded import compensate_unfolded
from cleanai_ray.repair.watching import trace_units

TINY = 1e-9


def state_of(model: nn.Module) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in model.state_dict().items()}


def pair_of(dense: nn.Module, pruned: nn.Module, **kept: Any) -> ModelPair:
    return ModelPair(
        dense=dense, pruned=pruned, kept_inputs=kept.get("inputs", {}), kept_outputs=kept.get("outputs", {})
    )


def lstsq_on_windows(value: Tensor, wanted: Tensor, layer: nn.Conv2d) -> tuple[Tensor, Tensor]:
    """Weight and bias of the least squares solution that makes `wanted` [N, C, H, W] of `value`, from im2col."""
    windows = functional.unfold(value, layer.kernel_size, padding=layer.padding, stride=layer.stride)
    rows = windows.transpose(1, 2).flatten(0, 1)
    rows = torch.cat([rows, torch.ones(len(rows), 1, dtype=rows.dtype)], dim=1)
    found = torch.linalg.lstsq(rows, wanted.flatten(2).transpose(1, 2).flatten(0, 1)).solution
    return found[:-1].T.reshape(layer.weight.shape), found[-1]


def two_layers(*after: nn.Module, bias: bool = True) -> nn.Sequential:
    layers = nn.Conv2d(2, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 5, 3, stride=2, padding=1, bias=bias)
    return nn.Sequential(*layers, *after).double().eval()


@torch.no_grad()
def test_the_refit_is_least_squares_on_im2col() -> None:
    dense, images = two_layers(), images_for("plain", 40, torch.float64)
    case = cut(dense, {"0": [1, 4]})
    pruned = case.result.model
    first = state_of(pruned[0])
    weight, bias = lstsq_on_windows(pruned[:2](images), dense(images), pruned[2])
    assert compensate_unfolded(case.pair(pruned), images.split(16), ridge=TINY) == ("2",)
    torch.testing.assert_close(pruned[2].weight, weight, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(pruned[2].bias, bias, rtol=1e-6, atol=1e-6)
    # The first layer's outputs were those of the dense one already.
    assert all(torch.equal(value, first[key]) for key, value in pruned[0].state_dict().items())


@torch.no_grad()
def test_the_shift_of_a_layer_without_a_bias_is_in_the_running_mean_of_its_batch_norm() -> None:
    norm = nn.BatchNorm2d(5)
    for value, (low, high) in ((norm.weight, (-2, 2)), (norm.running_mean, (-1, 1)), (norm.running_var, (0.5, 2))):
        nn.init.uniform_(value, low, high)
    dense, images = two_layers(norm, nn.Tanh(), bias=False), images_for("plain", 40, torch.float64)
    case = cut(dense, {"0": [1, 4]})
    pruned = case.result.model
    before = state_of(pruned)
    weight, bias = lstsq_on_windows(pruned[:2](images), dense[:3](images), pruned[2])
    compensate_unfolded(case.pair(pruned), [images], ridge=TINY)
    assert pruned[2].bias is None
    torch.testing.assert_close(pruned[2].weight, weight, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(pruned[3].running_mean, before["3.running_mean"] - bias, rtol=1e-6, atol=1e-6)
    same = ["3.running_var", "3.weight", "3.bias", "0.weight", "0.bias"]
    assert all(torch.equal(pruned.state_dict()[key], before[key]) for key in same)
    made = functional.conv2d(pruned[:2](images), weight, bias, stride=2, padding=1)
    expected = torch.tanh(dense[3](made))
    torch.testing.assert_close(pruned(images), expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_a_large_ridge_keeps_the_weight_and_leaves_the_shift() -> None:
    dense, images = two_layers(), images_for("plain", 40, torch.float64)
    case = cut(dense, {"0": [1, 4]})
    pruned = case.result.model
    before, wrong = state_of(pruned), dense(images) - pruned(images)
    compensate_unfolded(case.pair(pruned), [images], ridge=1e12)
    torch.testing.assert_close(pruned[2].weight, before["2.weight"], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(pruned[2].bias, before["2.bias"] + wrong.mean(dim=(0, 2, 3)), rtol=1e-6, atol=1e-6)


class Gain(nn.Module):
    """A factor for each channel, which no refit touches."""

    def __init__(self, channels: int, low: float, high: float) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.linspace(low, high, channels))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gain.view(-1, *[1] * (x.ndim - 2))


class Shortcut(nn.Module):
    """A block whose shortcut is its input times a gain, and whose last layer reads its input, plus 8."""

    def __init__(self, *chain: nn.Module, in_place: bool = False) -> None:
        super().__init__()
        self.side = Gain(4, 0.5, 2)
        self.first, self.last = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 3, padding=1)
        self.chain, self.in_place = nn.Sequential(*chain), in_place
        nn.init.dirac_(self.first.weight)
        nn.init.constant_(self.first.bias, 8.0)

    def forward(self, x: Tensor) -> Tensor:
        side = self.side(x)
        made = self.chain(self.last(torch.relu(self.first(x))))
        if not self.in_place:
            return torch.tanh(side + made)
        made += side
        return torch.tanh(made)


def norm_of(weights: list[float]) -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(len(weights))
    norm.weight.data.copy_(torch.tensor(weights))
    nn.init.uniform_(norm.running_var, 0.5, 2)
    return norm


@pytest.mark.parametrize("memory_limit", [1 << 30, 1])
@pytest.mark.parametrize(
    "build_block",
    [
        Shortcut,
        lambda: Shortcut(in_place=True),
        lambda: Shortcut(norm_of([1.0, -2.0, 0.3, 1.5])),
        lambda: Shortcut(
            norm_of([1.0, -2.0, 0.3, 1.5]), nn.Dropout(0.2), norm_of([2.0, 1.0, -1.0, 0.5]), in_place=True
        ),
    ],
    ids=["plain", "in place", "batch-norm", "long chain"],
)
@torch.no_grad()
def test_a_block_whose_shortcut_is_wrong_is_right_after_the_refit_of_its_last_layer(
    build_block: Callable[[], nn.Module], memory_limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    dense, images = build_block().double().eval(), torch.randn(60, 4, 5, 5, dtype=torch.float64)
    pruned, blind = copy.deepcopy(dense), copy.deepcopy(dense)
    for model in (pruned, blind):
        model.side.gain.mul_(torch.tensor([1.3, 0.6, 1.1, 0.9]))
    wrong = float((pruned(images) - dense(images)).abs().max())
    compensate_unfolded(pair_of(dense, pruned), images.split(25), ridge=TINY, memory_limit=memory_limit)
    assert float((pruned(images) - dense(images)).abs().max()) < 1e-6
    assert wrong > 0.05
    # Without its sum, the last layer makes what the dense one does, and stays.

    def without_branches(*args: Any) -> Any:
        return [replace(unit, branch=None) for unit in trace_units(*args)]

    monkeypatch.setattr(unfolded, "trace_units", without_branches)
    assert compensate_unfolded(pair_of(dense, blind), images.split(25), ridge=TINY) == ()
    assert float((blind(images) - dense(images)).abs().max()) == wrong


class Selected(nn.Module):
    """A block that reads some of the channels."""

    def __init__(self, inner: nn.Module, channels: list[int]) -> None:
        super().__init__()
        self.inner, self.channels = inner, channels

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x[:, self.channels])


@torch.no_grad()
def test_both_models_judge_alike_which_channels_batch_norm_switches_off() -> None:
    """Next to channel 0 alone, which is pruned, all others look switched off. Nothing reads it: nothing is wrong."""
    kept = np.array([1, 2, 3])
    dense = Shortcut(norm_of([1000.0, 0.5, 0.7, 0.9])).double().eval()
    dense.last.weight[:, 0] = 0
    pruned = copy.deepcopy(dense)
    for module, fields in (
        (pruned.side, ["gain"]),
        (pruned.first, ["weight", "bias"]),
        (pruned.last, ["weight", "bias"]),
        (pruned.chain[0], ["weight", "bias", "running_mean", "running_var"]),
    ):
        for field in fields:
            value = getattr(module, field)
            narrow = value[kept][:, kept] if value.ndim == 4 else value[kept]
            setattr(module, field, nn.Parameter(narrow) if isinstance(value, nn.Parameter) else narrow)
    outputs = {f"inner.{name}": kept for name in ("side", "first", "last", "chain.0")}
    models = pair_of(Selected(dense, [0, 1, 2, 3]), Selected(pruned, [1, 2, 3]), outputs=outputs)
    images = torch.randn(60, 4, 5, 5, dtype=torch.float64)
    torch.testing.assert_close(models.pruned(images), models.dense(images)[:, kept])
    assert compensate_unfolded(models, [images]) == ()


LAYERS: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "convolution": (nn.Conv2d(4, 6, 3, padding=1), (4, 6, 6)),
    "without a bias": (nn.Conv2d(4, 6, 3, bias=False), (4, 6, 6)),
    "groups": (nn.Conv2d(4, 6, 3, groups=2, stride=2), (4, 6, 6)),
    "depthwise": (nn.Conv2d(4, 8, 3, groups=4, padding=1, dilation=2), (4, 6, 6)),
    "transposed": (nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1), (4, 6, 6)),
    "transposed in groups": (nn.ConvTranspose2d(4, 6, 2, groups=2), (4, 6, 6)),
    "linear": (nn.Linear(4, 6), (4,)),
}


@pytest.mark.parametrize("name", LAYERS)
@torch.no_grad()
def test_every_kind_of_layer_undoes_what_is_wrong_with_its_input(name: str) -> None:
    layer, shape = copy.deepcopy(LAYERS[name])
    dense = nn.Sequential(Gain(4, 1, 2), layer, nn.Sigmoid()).double().eval()
    pruned = copy.deepcopy(dense)
    pruned[0].gain.copy_(torch.tensor([2.0, -1.0, 0.5, 1.0]))
    images = torch.randn(200, *shape, dtype=torch.float64)
    assert (pruned(images) - dense(images)).abs().max() > 0.1
    assert compensate_unfolded(pair_of(dense, pruned), [images], ridge=TINY) == ("1",)
    torch.testing.assert_close(pruned(images), dense(images), rtol=1e-6, atol=1e-6)
    expected = {"1.weight", "1.bias"} if name != "without a bias" else {"1.weight"}
    assert {key for key in pruned.state_dict() if key.startswith("1.")} >= expected


@pytest.mark.parametrize("kind", ["groups", "transposed"])
@torch.no_grad()
def test_removed_channels_that_are_multiples_of_kept_ones_are_recovered(kind: str) -> None:
    """Channels 1 and 5, the second of each group, are 0.5 and 2 times the first ones."""
    layer = nn.Conv2d(8, 6, 3, groups=2) if kind == "groups" else nn.ConvTranspose2d(8, 6, 3, groups=2, stride=2)
    first = nn.Conv2d(2, 8, 3)
    for removed, twin, factor in ((1, 0, 0.5), (5, 4, 2.0)):
        first.weight[removed], first.bias[removed] = factor * first.weight[twin], factor * first.bias[twin]
    dense = nn.Sequential(first, nn.ReLU(), layer, nn.ReLU(), nn.Conv2d(6, 3, 1)).double().eval()
    kept = np.array([0, 2, 3, 4, 6, 7])
    pruned = copy.deepcopy(dense)
    pruned[0].weight, pruned[0].bias = nn.Parameter(first.weight[kept]), nn.Parameter(first.bias[kept])
    rows = layer.weight[:, [0, 2, 3]] if kind == "groups" else layer.weight[kept]
    pruned[2].weight = nn.Parameter(rows.clone())
    images = torch.randn(100, 2, 8, 8, dtype=torch.float64)
    if kind == "transposed":
        pruned[2].in_channels = 6
    models = pair_of(dense, pruned, inputs={"2": kept}, outputs={"0": kept})
    assert (pruned(images) - dense(images)).abs().max() > 0.01
    assert compensate_unfolded(models, [images], ridge=1e-10) == ("2",)
    torch.testing.assert_close(pruned(images), dense(images), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["plain", "residual", "depthwise", "concat", "flattened", "vit"])
@torch.no_grad()
def test_planted_redundancy_is_recovered(name: str) -> None:
    case, images = planted_case(name), images_for(name, 200)
    pruned = case.result.model
    before = (pruned(images) - case.dense(images)).abs().max()
    compensate_unfolded(case.pair(pruned), images.split(64), ridge=1e-8)
    assert (pruned(images) - case.dense(images)).abs().max() < 0.01 * before


@pytest.mark.parametrize("name", ["residual", "depthwise", "flattened", "vit"])
def test_layer_by_layer_and_in_batches_of_any_size_the_weights_are_the_same(name: str) -> None:
    case, images = random_case(name), images_for(name, 30, torch.float64)
    found = []
    for size, limit in ((30, 1 << 40), (7, 1 << 40), (1, 1 << 40), (30, 1), (7, 1)):
        pruned = copy.deepcopy(case.result.model)
        compensate_unfolded(case.pair(pruned), images.split(size), ridge=1e-2, memory_limit=limit)
        found.append(state_of(pruned))
    for other in found[1:]:
        for key, value in found[0].items():
            torch.testing.assert_close(other[key], value, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(("fits", "passes"), [(True, 4), (False, 5)])
def test_a_dense_block_runs_once_if_the_targets_of_its_layers_have_room(
    fits: bool, passes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four blocks, of which the second holds two layers."""
    case, images = random_case("residual"), images_for("residual", 30, torch.float64)
    ran: list[int] = []
    own = Track.run_dense

    def run_dense(track: Track, batch: Tensor) -> Tensor:
        ran.append(len(batch))
        return own(track, batch)

    monkeypatch.setattr(Track, "run_dense", run_dense)
    # Less than four of the smallest block's activations: 4 channels of 8 x 8 values of 8 bytes. All that the second
    # block's layers should make takes less: at most 16 values of 4 bytes at 32 positions.
    limit = 4 * (4 * 8 * 8 * 8) * 30 - 1
    assert limit >= 16 * 4 * 32 * 30
    compensate_unfolded(case.pair(case.result.model), [images], ridge=1e-2, memory_limit=limit if fits else 1)
    assert ran == [30] * passes


@pytest.mark.parametrize("limit", [1 << 40, 1])
@torch.no_grad()
def test_a_layer_that_reads_much_is_refitted_in_parts(limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unfolded, "MAX_FEATURES", 7)
    case, images = random_case("flattened"), images_for("flattened", 60, torch.float64)
    pruned = case.result.model
    wrong = [float((pruned(images) - case.dense(images)).square().mean())]
    for _ in range(2):
        changed = compensate_unfolded(case.pair(pruned), images.split(25), memory_limit=limit)
        wrong.append(float((pruned(images) - case.dense(images)).square().mean()))
    assert set(changed) == {"conv2", "fc1", "fc2"}
    assert wrong[1] < 0.5 * wrong[0]
    assert wrong[2] < wrong[1]


@pytest.mark.parametrize("name", ["plain", "residual", "depthwise", "grouped", "concat", "flattened", "vit"])
@pytest.mark.parametrize("limit", [1 << 40, 1])
def test_where_nothing_was_pruned_nothing_changes(name: str, limit: int) -> None:
    dense = tiny_vit() if name == "vit" else build(name)
    case = Case.untouched(dense)
    before = state_of(dense)
    pair = case.pair(case.result.model)
    assert compensate_unfolded(pair, images_for(name, 20).split(8), memory_limit=limit) == ()
    assert all(torch.equal(value, before[key]) for key, value in pair.pruned.state_dict().items())


@torch.no_grad()
def test_a_network_of_tokens_is_repaired() -> None:
    models = tokens_pair(planted=True)
    dense, pruned, tokens = models.dense, models.pruned, torch.randint(11, (200, 5))
    assert (pruned(tokens) - dense(tokens)).abs().max() > 1e-3
    assert compensate_unfolded(models, tokens.split(64), ridge=1e-10) == ("down",)
    torch.testing.assert_close(pruned(tokens), dense(tokens), rtol=1e-6, atol=1e-7)


class Embedded(nn.Module):
    """A linear layer whose output, a position embedding is added to: for one sample, both have the same shape."""

    def __init__(self) -> None:
        super().__init__()
        self.gain, self.layer = Gain(6, 1, 2), nn.Linear(6, 4)
        self.position = nn.Parameter(torch.randn(1, 5, 4))

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.layer(x * self.gain.gain) + self.position)


@torch.no_grad()
def test_a_position_embedding_is_no_shortcut() -> None:
    dense = Embedded().double().eval()
    pruned = copy.deepcopy(dense)
    pruned.gain.gain.mul_(1.5)
    images = torch.randn(50, 5, 6, dtype=torch.float64)
    # Batches of one, too: what is found out with them holds for all.
    for batches in (images.split(1), [images]):
        compensate_unfolded(pair_of(dense, pruned), batches, ridge=TINY)
        torch.testing.assert_close(pruned(images), dense(images), rtol=1e-6, atol=1e-6)


class Twice(nn.Module):
    """A layer that runs twice, two layers that share their weight, and one by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.gain, self.shared = Gain(4, 1, 2), nn.Conv2d(4, 4, 1)
        self.one, self.other, self.last = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)
        self.other.weight = self.one.weight

    def forward(self, x: Tensor) -> Tensor:
        x = self.shared(torch.tanh(self.shared(self.gain(x))))
        return self.last(torch.tanh(self.other(torch.tanh(self.one(x)))))


@torch.no_grad()
def test_layers_that_run_twice_or_share_their_weight_stay_as_they_are() -> None:
    dense = Twice().eval()
    pruned = copy.deepcopy(dense)
    pruned.gain.gain.mul_(0.5)
    before = state_of(pruned)
    assert compensate_unfolded(pair_of(dense, pruned), [torch.randn(30, 4, 5, 5)]) == ("last",)
    changed = {key for key, value in pruned.state_dict().items() if not torch.equal(value, before[key])}
    assert changed == {"last.weight", "last.bias"}
    assert pruned.one.weight is pruned.other.weight


@pytest.mark.parametrize("name", ["residual", "vit"])
def test_modes_flags_and_hooks_stay(name: str) -> None:
    case = random_case(name, torch.float32)
    pruned = case.result.model
    for model in (case.dense, pruned):
        model.train()
        next(model.children()).eval()
        next(model.parameters()).requires_grad_(False)
    flags = [[m.training for m in model.modules()] for model in (case.dense, pruned)]
    before = state_of(case.dense)
    compensate_unfolded(case.pair(pruned), [images_for(name, 20)])
    for model, modes in zip((case.dense, pruned), flags, strict=True):
        assert [m.training for m in model.modules()] == modes
        assert [p.requires_grad for p in model.parameters()] == [i > 0 for i, _ in enumerate(model.parameters())]
        assert all(p.grad is None for p in model.parameters())
        assert count_hooks(model) == 0
    assert all(torch.equal(value, before[key]) for key, value in case.dense.state_dict().items())


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
@torch.no_grad()
def test_models_of_half_precision_are_repaired(kind: torch.dtype) -> None:
    case, images = planted_case("plain"), images_for("plain", 60)
    expected = case.dense(images)
    case.dense.to(kind)
    pruned = case.result.model.to(kind)
    before = (pruned(images.to(kind)) - expected).abs().mean()
    compensate_unfolded(case.pair(pruned), [images.to(kind)], ridge=1e-3)
    assert pruned.conv2.weight.dtype == kind
    assert (pruned(images.to(kind)) - expected).abs().mean() < 0.3 * before


def test_values_that_are_not_finite_and_batches_that_cannot_be_run_are_named() -> None:
    case, images = random_case("plain", torch.float32), images_for("plain", 20)
    pair = case.pair(case.result.model)
    with pytest.raises(CalibrationError, match="hold none"):
        compensate_unfolded(pair, [])
    with pytest.raises(CalibrationError, match="repair stopped at samples 20 to 22: "):
        compensate_unfolded(pair, [images, images[:3, :1]])
    images[3, 0, 2, 2] = torch.inf
    with pytest.raises(CalibrationError, match=r"layer 'conv.' are not finite on the calibration samples"):
        compensate_unfolded(pair, [images])
    assert all(count_hooks(model) == 0 for model in (pair.dense, pair.pruned))
