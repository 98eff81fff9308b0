"""Block-wise reconstruction: each block ends no farther from the dense one than its refit, on images held back."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from pruned_nets import Case, assert_only_weights_change, cut, images_for, random_case, tokens_pair
from torch import Tensor, nn

from cleanai_ray.repair import ModelPair
from cleanai_ray.repair.blockwise import COPIES, _augmented, reconstruct_blocks
from cleanai_ray.repair.learning import Learned, Recipe
from cleanai_ray.repair.track import Track

RECIPE = Recipe(steps=24, learning_rate=0.05, batch_size=16)
UNTRAINED = Recipe(steps=0, learning_rate=0.05, batch_size=16)
DIVERGING = Recipe(steps=8, learning_rate=1e9, batch_size=16)


def state_of(model: nn.Module) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in model.state_dict().items()}


def same(one: nn.Module, other: nn.Module) -> bool:
    states = one.state_dict(), other.state_dict()
    return all(torch.equal(value, states[1][key]) for key, value in states[0].items())


def parts_of(name: str) -> tuple[list[Tensor], list[Tensor]]:
    """Images to learn from, and images held back."""
    images = images_for(name, 80)
    return list(images[:64].split(16)), list(images[64:].split(16))


def reconstructed(case: Case, name: str, recipe: Recipe) -> tuple[nn.Module, tuple[Learned, ...]]:
    pruned = copy.deepcopy(case.result.model)
    learned = reconstruct_blocks(case.pair(pruned), *parts_of(name), recipe)
    return pruned, learned


def input_of(model: nn.Module, name: str, images: Tensor) -> Tensor:
    """What a module reads in a pass of the whole model."""
    seen: list[Tensor] = []
    handle = model.get_submodule(name).register_forward_pre_hook(lambda module, args: seen.append(args[0].clone()))
    model(images)
    handle.remove()
    return seen[0]


@torch.no_grad()
def errors_of(models: ModelPair, held: Tensor) -> list[float]:
    """The squared error of what each block makes, relative to the variance, from passes of the whole models."""
    track = Track(models, [held])
    found = []
    for block in track.blocks:
        if block.stop is None:
            wide, narrow = models.dense(held), models.pruned(held)
        else:
            feature = track.feature(block.stop)
            assert feature is not None
            wide, narrow = (input_of(model, feature.module, held) for model in (models.dense, models.pruned))
            wide = feature.of_dense(wide)
        found.append(float((narrow - wide).square().mean() / wide.var(correction=0)))
    return found


@pytest.mark.parametrize("name", ["plain", "residual", "depthwise", "concat", "vit"])
def test_no_block_ends_worse_than_its_refit_and_the_record_says_what_is_measured(name: str) -> None:
    case, held = random_case(name, torch.float32), torch.cat(parts_of(name)[1])
    pruned, learned = reconstructed(case, name, RECIPE)
    measured = errors_of(case.pair(pruned), held)
    assert [entry.after for entry in learned] == pytest.approx(measured, rel=1e-3, abs=1e-7)
    assert all(entry.after <= entry.before for entry in learned)
    # The first block's start is that of the refit alone.
    refit, start = reconstructed(case, name, UNTRAINED)
    assert [entry.after for entry in start] == pytest.approx(errors_of(case.pair(refit), held), rel=1e-3, abs=1e-7)
    assert [entry.after for entry in start] == [entry.before for entry in start]
    assert learned[0].before == start[0].before


@pytest.mark.parametrize(("name", "block"), [("residual", 2), ("vit", -1)])
def test_training_the_blocks_of_a_pruned_residual_network_lowers_its_error(name: str, block: int) -> None:
    """The layers of a block help each other, which a refit of one layer after the other cannot know."""
    case, held = random_case(name, torch.float32), torch.cat(parts_of(name)[1])
    if name == "residual":
        case = cut(case.dense, {"stem": [0, 1, 2, 3], "conv1": [0, 1, 3, 4, 6, 7]})
    trained, _ = reconstructed(case, name, Recipe(steps=150, learning_rate=0.02, batch_size=16))
    refit, _ = reconstructed(case, name, UNTRAINED)
    errors, starts = (errors_of(case.pair(model), held)[block] for model in (trained, refit))
    assert errors < 0.95 * starts


@pytest.mark.parametrize("name", ["plain", "residual", "vit"])
def test_training_that_diverges_leaves_the_refit_bit_for_bit(name: str) -> None:
    case = random_case(name, torch.float32)
    refit, _ = reconstructed(case, name, UNTRAINED)
    diverged, learned = reconstructed(case, name, DIVERGING)
    assert all(entry.after == entry.before for entry in learned)
    assert any(entry.steps == 8 for entry in learned)
    assert same(refit, diverged)


def test_nothing_changes_where_nothing_was_pruned() -> None:
    case = Case.untouched(random_case("residual", torch.float32).dense)
    pruned, learned = reconstructed(case, "residual", RECIPE)
    assert same(pruned, case.dense)
    assert all(entry.steps == 0 for entry in learned)


def test_the_same_seed_gives_the_same_weights() -> None:
    case = random_case("residual", torch.float32)
    recipe = Recipe(steps=24, learning_rate=0.05, batch_size=16, seed=3)
    one, other = (reconstructed(case, "residual", recipe)[0] for _ in range(2))
    assert same(one, other)
    assert not same(one, reconstructed(case, "residual", RECIPE)[0])


def test_hardly_any_time_makes_a_step_in_each_block() -> None:
    case = random_case("residual", torch.float32)
    pruned, learned = reconstructed(
        case, "residual", Recipe(steps=500, learning_rate=0.05, batch_size=16, seconds=1e-6)
    )
    # The first block loses nothing but channels: there is nothing to learn.
    assert [entry.steps for entry in learned] == [0, 1, 1, 1]
    assert all(entry.after <= entry.before for entry in learned)
    assert torch.isfinite(pruned(images_for("residual", 4))).all()


def test_modes_flags_gradients_and_hooks_stay() -> None:
    case = random_case("residual", torch.float32)
    assert_only_weights_change(case, lambda models: reconstruct_blocks(models, *parts_of("residual"), RECIPE))


def test_blocks_normalise_by_their_running_statistics_which_training_leaves_alone() -> None:
    case = random_case("residual", torch.float32)
    refit, trained = (reconstructed(case, "residual", recipe)[0] for recipe in (UNTRAINED, RECIPE))
    assert torch.equal(trained.bn0.running_var, refit.bn0.running_var)
    assert torch.equal(trained.bn0.num_batches_tracked, refit.bn0.num_batches_tracked)


def test_tokens_are_learned_from_as_they_are() -> None:
    models = tokens_pair(planted=False)
    tokens = torch.randint(11, (60, 5))
    copies = _augmented(tokens, RECIPE)
    assert sorted(copies.tolist()) == sorted(tokens.tolist() * COPIES)
    learned = reconstruct_blocks(models, [tokens[:48]], [tokens[48:]], RECIPE)
    assert learned[-1].after <= learned[-1].before
    with torch.no_grad():
        wanted, made = models.dense(tokens[48:]), models.pruned(tokens[48:])
    assert learned[-1].after == pytest.approx(float((made - wanted).square().mean() / wanted.var(correction=0)))


def test_copies_of_images_are_mirrored_only_where_that_is_allowed() -> None:
    images = torch.zeros(6, 1, 4, 9)
    images[:, :, :, 0] = 1  # Shifted by at most 2, what is on the left stays there.
    allowed, forbidden = (
        _augmented(images, Recipe(steps=1, learning_rate=1, mirror=mirror)) for mirror in (True, False)
    )
    assert allowed.shape == (6 * COPIES, 1, 4, 9)
    assert allowed[..., 5:].any()
    assert not forbidden[..., 5:].any()


def network(channels: int, outputs: int) -> nn.Sequential:
    """Channels that are flattened behind a pooling, at which a block begins."""
    first = (nn.Conv2d(2, 6, 3), nn.ReLU(), nn.Conv2d(6, channels, 3), nn.ReLU())
    pooled = (nn.MaxPool2d(2), nn.Flatten())
    return nn.Sequential(*first, *pooled, nn.Linear(channels * 4, outputs), nn.ReLU(), nn.Linear(outputs, 2)).eval()


def test_a_block_whose_channels_are_unknown_is_refitted_alone() -> None:
    torch.manual_seed(0)
    dense, pruned = network(4, 5), network(3, 5)
    kept = np.array([0, 1, 3])
    features = np.concatenate([np.arange(4) + 4 * channel for channel in kept])
    pruned.load_state_dict(
        {
            **dense.state_dict(),
            "2.weight": dense[2].weight[kept],
            "2.bias": dense[2].bias[kept],
            "6.weight": dense[6].weight[:, features],
        }
    )
    # No layer says which channels were kept: neither the one that lost them, nor the one that reads them.
    models = ModelPair(dense=dense, pruned=pruned, kept_inputs={}, kept_outputs={"2": kept})
    images = torch.randn(80, 2, 8, 8)
    track = Track(models, [images])
    known = [block.stop is None or track.feature(block.stop) is not None for block in track.blocks]
    assert False in known
    learned = reconstruct_blocks(models, [images[:64]], [images[64:]], RECIPE)
    assert len(learned) == sum(known)
    assert learned[-1].after <= learned[-1].before


class Again(nn.Module):
    """A layer that runs in two blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.inner, self.last = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)
        self.act, self.gain = nn.Tanh(), nn.Parameter(torch.ones(6))

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.inner(self.first(x) * self.gain))
        return self.last(torch.tanh(self.first(torch.tanh(self.inner(x)))))


def test_a_layer_that_runs_in_several_blocks_is_trained_in_none() -> None:
    dense = Again().eval()
    pruned = copy.deepcopy(dense)
    with torch.no_grad():
        pruned.gain.mul_(torch.tensor([0.5, 2, 1, 1, 1.5, 0.7]))
    models = ModelPair(dense=dense, pruned=pruned, kept_inputs={}, kept_outputs={})
    images = torch.randn(80, 6)
    track = Track(models, [images])
    times: dict[str, int] = {}
    for block in track.blocks:
        for layer in block.layers:
            times[layer] = times.get(layer, 0) + 1
    before = state_of(pruned)
    learned = reconstruct_blocks(models, [images[:64]], [images[64:]], RECIPE)
    several = {layer for layer, number in times.items() if number > 1}
    assert several == {"first", "inner"}
    for layer in several:
        assert torch.equal(pruned.get_submodule(layer).weight, before[f"{layer}.weight"])
    # So what one block has learned is what the model does in the end.
    with torch.no_grad():
        wanted, made = dense(images[64:]), pruned(images[64:])
    assert learned[-1].after == pytest.approx(
        float((made - wanted).square().mean() / wanted.var(correction=0)), rel=1e-4
    )


@pytest.mark.parametrize("kind", [torch.float64, torch.bfloat16])
def test_models_of_any_precision_are_trained(kind: torch.dtype) -> None:
    case = random_case("residual", kind)
    images = images_for("residual", 40, kind)
    learned = reconstruct_blocks(case.pair(case.result.model), [images[:32]], [images[32:]], RECIPE)
    assert all(entry.after <= entry.before for entry in learned)
    assert all(value.dtype == kind for value in case.result.model.parameters())
    assert torch.isfinite(case.result.model(images)).all()


def test_one_image_to_learn_from_and_one_to_judge_by_are_enough() -> None:
    case = random_case("residual", torch.float32)
    images = images_for("residual", 2)
    learned = reconstruct_blocks(case.pair(case.result.model), [images[:1]], [images[1:]], RECIPE)
    assert all(entry.after <= entry.before for entry in learned)
