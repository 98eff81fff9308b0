"""Distillation without labels: it ends no farther from the dense model than it began, on images held back."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from pruned_nets import REMOVED, Case, assert_only_weights_change, cut, images_for, random_case, tokens_pair
from torch import Tensor, nn

from cleanai_ray.nn.losses import distillation_loss
from cleanai_ray.repair import ModelPair
from cleanai_ray.repair.batch_norm import apply_reset, collect_norm_sums
from cleanai_ray.repair.distillation import TEMPERATURE, _spread, distill
from cleanai_ray.repair.learning import Learned, Recipe
from cleanai_ray.repair.outputs import first_output
from cleanai_ray.repair.track import Feature

RECIPE = Recipe(steps=24, learning_rate=0.02, batch_size=16)
DIVERGING = Recipe(steps=8, learning_rate=1e9, batch_size=16)


@torch.no_grad()
def telling_case(name: str, dtype: torch.dtype) -> Case:
    """A pruned network whose outputs differ much from image to image, and whose statistics are those of the images."""
    dense = random_case(name, dtype).dense
    for layer in ("fc", "fc2"):
        if hasattr(dense, layer):
            getattr(dense, layer).weight.mul_(20)
    apply_reset(dense, collect_norm_sums(dense, [images_for(name, 64, dtype)]))
    return cut(dense, REMOVED[name])


def parts_of(name: str) -> tuple[list[Tensor], list[Tensor]]:
    """Images to learn from, and images held back."""
    images = images_for(name, 80)
    return list(images[:64].split(16)), list(images[64:].split(5))


def distilled(case: Case, name: str, recipe: Recipe) -> tuple[nn.Module, Learned]:
    pruned = copy.deepcopy(case.result.model)
    return pruned, distill(case.pair(pruned), *parts_of(name), recipe)


@torch.no_grad()
def kl(dense: nn.Module, other: nn.Module, images: Tensor) -> float:
    """Mean KL(dense || other) of the softmax outputs, term by term."""
    total = 0.0
    for p, q in zip(dense(images).double().softmax(1), other(images).double().softmax(1), strict=True):
        total += sum(float(a) * math.log(float(a) / float(b)) for a, b in zip(p, q, strict=True))
    return total / len(images)


def same(one: nn.Module, other: nn.Module) -> bool:
    states = one.state_dict(), other.state_dict()
    return all(torch.equal(value, states[1][key]) for key, value in states[0].items())


@pytest.mark.parametrize("name", ["plain", "residual", "depthwise", "concat", "flattened", "vit"])
def test_the_record_is_what_is_measured_and_the_end_is_nearer_to_the_dense_model(name: str) -> None:
    case, held = telling_case(name, torch.float32), torch.cat(parts_of(name)[1])
    learning_rate = 0.005 if name == "vit" else 0.02
    pruned, learned = distilled(case, name, Recipe(steps=80, learning_rate=learning_rate, batch_size=16))
    start, end = kl(case.dense, case.result.model, held), kl(case.dense, pruned, held)
    assert learned.before == pytest.approx(start, rel=1e-5, abs=1e-9)
    assert learned.after == pytest.approx(end, rel=1e-4, abs=1e-9)
    assert end < 0.8 * start


@pytest.mark.parametrize("name", ["flattened", "vit"])
def test_training_that_diverges_leaves_a_model_without_batch_norm_bit_for_bit(name: str) -> None:
    case = telling_case(name, torch.float32)
    pruned, learned = distilled(case, name, DIVERGING)
    assert same(pruned, case.result.model)
    assert learned.after == learned.before
    assert learned.steps == 8


@pytest.mark.parametrize("name", ["plain", "residual"])
def test_statistics_that_would_be_worse_are_restored_bit_for_bit(name: str) -> None:
    """The dense model's running statistics are not those of the images: to take theirs would lead away from it."""
    case = Case.untouched(random_case(name, torch.float32).dense)
    with torch.no_grad():
        case.result.model.fc.weight.mul_(1.05)
    pruned, learned = distilled(case, name, DIVERGING)
    assert same(pruned, case.result.model)
    assert learned.after == learned.before > 0


def test_statistics_that_are_nearer_are_taken() -> None:
    """Only the running statistics are wrong, and no step helps: those of the images as they are bring all back."""
    dense = telling_case("residual", torch.float32).dense
    images, held = parts_of("residual")
    apply_reset(dense, collect_norm_sums(dense, images))
    case = Case.untouched(dense)
    for norm in (case.result.model.bn0, case.result.model.bn2):
        norm.running_mean.add_(0.5)
        norm.running_var.mul_(3)
    pruned, learned = distilled(case, "residual", DIVERGING)
    assert learned.before > 1e-3
    assert learned.after == pytest.approx(kl(dense, pruned, torch.cat(held)), abs=1e-9)
    assert learned.after < 1e-9
    torch.testing.assert_close(pruned.bn0.running_var, dense.bn0.running_var)


def test_nothing_changes_where_nothing_was_pruned() -> None:
    case = Case.untouched(telling_case("residual", torch.float32).dense)
    pruned, learned = distilled(case, "residual", RECIPE)
    assert same(pruned, case.dense)
    assert (learned.before, learned.after, learned.steps) == (0.0, 0.0, 0)


def test_the_same_seed_gives_the_same_weights() -> None:
    case = telling_case("residual", torch.float32)
    one, other = (distilled(case, "residual", RECIPE)[0] for _ in range(2))
    assert same(one, other)
    elsewhere = Recipe(steps=24, learning_rate=0.02, batch_size=16, seed=3)
    assert not same(one, distilled(case, "residual", elsewhere)[0])


def test_hardly_any_time_makes_one_step() -> None:
    case = telling_case("residual", torch.float32)
    held = torch.cat(parts_of("residual")[1])
    pruned, learned = distilled(case, "residual", Recipe(steps=500, learning_rate=0.02, batch_size=16, seconds=1e-6))
    assert learned.steps == 1
    assert kl(case.dense, pruned, held) == pytest.approx(learned.after, rel=1e-4)
    assert learned.after <= learned.before


def test_modes_flags_gradients_and_hooks_stay() -> None:
    case = telling_case("residual", torch.float32)
    assert_only_weights_change(case, lambda models: distill(models, *parts_of("residual"), RECIPE))


class Given(nn.Module):
    """A model that gives its output among others."""

    def __init__(self, model: nn.Module, kind: str) -> None:
        super().__init__()
        self.model, self.kind = model, kind

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor] | dict[str, Tensor]:
        made = self.model(x)
        return (made, made.detach() + 1) if self.kind == "tuple" else {"out": made, "aux": made.detach() + 1}


@pytest.mark.parametrize("kind", ["tuple", "dict"])
def test_the_first_of_several_outputs_is_reproduced(kind: str) -> None:
    case = telling_case("residual", torch.float32)
    dense, pruned = Given(case.dense, kind), Given(copy.deepcopy(case.result.model), kind)
    models = ModelPair(dense=dense, pruned=pruned, kept_inputs={}, kept_outputs={})
    learned = distill(models, *parts_of("residual"), RECIPE)
    held = torch.cat(parts_of("residual")[1])
    assert learned.after == pytest.approx(kl(case.dense, pruned.model, held), rel=1e-4)
    assert learned.after < learned.before
    assert torch.equal(first_output(pruned(held)), pruned.model(held))


def test_tokens_are_learned_from() -> None:
    models = tokens_pair(planted=False)
    tokens = torch.randint(11, (60, 5))
    start = kl(models.dense, models.pruned, tokens[48:])
    learned = distill(models, [tokens[:48]], [tokens[48:]], RECIPE)
    assert learned.before == pytest.approx(start)
    assert learned.after == pytest.approx(kl(models.dense, models.pruned, tokens[48:]))
    assert learned.after < start


@pytest.mark.parametrize("sizes", [(1, 1), (5, 1)])
def test_batches_of_one_image_work_with_batch_norm(sizes: tuple[int, int]) -> None:
    """A single value per channel has no variance (the norm of this net reads features [N, C])."""

    def network(width: int) -> nn.Sequential:
        layers = nn.Linear(4, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, 3)
        return nn.Sequential(*layers).eval()

    dense, pruned = network(6), network(5)
    models = ModelPair(dense=dense, pruned=pruned, kept_inputs={}, kept_outputs={})
    images = torch.randn(sum(sizes), 4)
    recipe = Recipe(steps=8, learning_rate=0.02, batch_size=sizes[0])
    learned = distill(models, [images[: sizes[0]]], [images[sizes[0] :]], recipe)
    assert learned.steps == 8
    assert learned.after <= learned.before


@pytest.mark.parametrize("kind", [torch.float64, torch.bfloat16])
def test_models_of_any_precision_are_trained(kind: torch.dtype) -> None:
    case = telling_case("residual", kind)
    images = images_for("residual", 40, kind)
    learned = distill(case.pair(case.result.model), [images[:32]], [images[32:]], RECIPE)
    assert learned.after <= learned.before
    assert all(value.dtype == kind for value in case.result.model.parameters())


def test_the_loss_is_the_divergence_at_a_temperature_times_its_square() -> None:
    student, teacher = torch.randn(5, 3, 2, 2), torch.randn(5, 3, 2, 2)
    total = 0.0
    for one, other in zip(
        student.permute(0, 2, 3, 1).reshape(-1, 3), teacher.permute(0, 2, 3, 1).reshape(-1, 3), strict=True
    ):
        q, p = (torch.softmax(row.double() / TEMPERATURE, dim=0) for row in (one, other))
        total += float((p * (p / q).log()).sum())
    assert float(distillation_loss(student, teacher, TEMPERATURE)) == pytest.approx(
        TEMPERATURE**2 * total / 20, rel=1e-4
    )
    assert float(distillation_loss(teacher, teacher, TEMPERATURE)) == pytest.approx(0, abs=1e-6)


def test_a_few_features_in_equal_distances_the_last_one_among_them() -> None:
    features = [Feature(module=str(number)) for number in range(9)]
    assert [feature.module for feature in _spread(features)] == ["1", "3", "6", "8"]
    assert _spread(features[:3]) == features[:3]
    assert _spread([]) == []
