"""Training of modules on what others make: its end is never worse than its start, and it leaves nothing behind."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from cleanai_ray.repair.learning import ImageStream, Learned, Recipe, _Pace, learn

INPUTS = torch.randn(64, 4, generator=torch.Generator().manual_seed(0))


def task_for(module: nn.Module) -> tuple[Callable[[int], Tensor], Callable[[], float]]:
    """The loss of a step and that on held-back rows, of a module that should give the sum of its inputs."""

    def loss(step: int) -> Tensor:
        rows = INPUTS[:48]
        return (module(rows) - rows.sum(1, keepdim=True)).square().mean()

    def held_back() -> float:
        module.eval()
        with torch.no_grad():
            error = float((module(INPUTS[48:]) - INPUTS[48:].sum(1, keepdim=True)).square().mean())
        module.train()
        return error

    return loss, held_back


def state_of(module: nn.Module) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in module.state_dict().items()}


def assert_unchanged(module: nn.Module, before: dict[str, Tensor]) -> None:
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())


def test_training_ends_with_the_weights_that_its_record_speaks_of() -> None:
    module = nn.Linear(4, 1)
    loss, held_back = task_for(module)
    start = held_back()
    learned = learn(list(module.modules()), Recipe(steps=80, learning_rate=0.1), loss, held_back)
    assert learned.before == start
    assert learned.after == held_back() < 0.01 * start
    assert learned.steps == 80
    assert learned.seconds > 0


@pytest.mark.parametrize("module", [nn.Linear(4, 1), nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 1))])
@pytest.mark.parametrize("rate", [1e12, 1e38])
def test_training_that_diverges_leaves_weights_and_running_statistics_bit_for_bit(
    module: nn.Module, rate: float
) -> None:
    before, (loss, held_back) = state_of(module), task_for(module)
    learned = learn(list(module.modules()), Recipe(steps=16, learning_rate=rate), loss, held_back)
    assert learned.after == learned.before == held_back()
    assert learned.steps == 16
    assert_unchanged(module, before)


def test_the_weights_of_the_best_look_are_kept() -> None:
    """Each step adds to the weight, and a script says what each look at it finds: the fourth one is the best."""
    module, seen = nn.Linear(1, 1, bias=False), []
    script = iter([5.0, 6.0, math.nan, 3.0, 4.0, math.inf, 3.5, 3.0, 9.0])

    def held_back() -> float:
        seen.append(float(module.weight.detach()))
        return next(script)

    learned = learn(
        list(module.modules()), Recipe(steps=32, learning_rate=0.1), lambda step: -module.weight.sum(), held_back
    )
    assert len(seen) == 9
    assert sorted(set(seen)) == seen
    assert float(module.weight.detach()) == seen[3]
    assert (learned.before, learned.after, learned.steps) == (5.0, 3.0, 32)


def test_modules_within_a_module_are_trained_and_restored_only_if_they_are_given_themselves() -> None:
    module = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 1))
    before, (loss, held_back) = state_of(module), task_for(module)
    learn([module, module[1]], Recipe(steps=16, learning_rate=0.1), loss, held_back)
    assert torch.equal(module[0].weight, before["0.weight"])
    assert not torch.equal(module[1].weight, before["1.weight"])
    assert module[0].weight.grad is None


@pytest.mark.parametrize("start", [math.nan, math.inf])
def test_any_finite_loss_is_better_than_one_that_is_not_finite(start: float) -> None:
    module, script = nn.Linear(1, 1), iter([start, *[7.0] * 8])
    learned = learn(
        list(module.modules()),
        Recipe(steps=8, learning_rate=0.1),
        lambda step: module.weight.sum(),
        lambda: next(script),
    )
    assert (learned.before, learned.after) == (math.inf, 7.0)


def test_one_step_at_least_is_made_however_little_time_there_is() -> None:
    module = nn.Linear(4, 1)
    loss, held_back = task_for(module)
    learned = learn(list(module.modules()), Recipe(steps=1000, learning_rate=0.1, seconds=1e-9), loss, held_back)
    assert learned.steps == 1
    assert learned.after == held_back() <= learned.before
    assert all(torch.isfinite(value).all() for value in module.state_dict().values())


@pytest.mark.parametrize("reason", ["no steps", "no error", "no parameters"])
def test_without_anything_to_do_nothing_is_done(reason: str) -> None:
    module = nn.ReLU() if reason == "no parameters" else nn.Linear(4, 1)

    def loss(step: int) -> Tensor:
        raise AssertionError("a step was made")

    value = 0.0 if reason == "no error" else 2.0
    steps = 0 if reason == "no steps" else 10
    before = state_of(module)
    learned = learn(list(module.modules()), Recipe(steps=steps, learning_rate=0.1), loss, lambda: value)
    assert learned == Learned(before=value, after=value, steps=0, seconds=learned.seconds)
    assert_unchanged(module, before)


@pytest.mark.parametrize("fails", [False, True])
def test_flags_and_gradients_stay_also_where_a_step_fails(fails: bool) -> None:
    module = nn.Linear(4, 1)
    module.bias.requires_grad_(False)
    gradient = torch.full((1, 4), 3.0)
    module.weight.grad = gradient
    loss, held_back = task_for(module)

    def step(number: int) -> Tensor:
        if fails and number == 3:
            raise ValueError("three")
        return loss(number)

    before = module.bias.clone()
    try:
        learn(list(module.modules()), Recipe(steps=8, learning_rate=0.1), step, held_back)
    except ValueError:
        assert fails
    assert [module.weight.requires_grad, module.bias.requires_grad] == [True, False]
    assert module.weight.grad is gradient
    assert gradient.tolist() == [[3.0] * 4]
    assert module.bias.grad is None
    # A frozen parameter is trained all the same: freezing is for another training.
    assert not torch.equal(module.bias, before)


def test_training_works_where_gradients_are_switched_off() -> None:
    module = nn.Linear(4, 1)
    loss, held_back = task_for(module)
    with torch.no_grad():
        learned = learn(list(module.modules()), Recipe(steps=20, learning_rate=0.1), loss, held_back)
    assert learned.after < learned.before


def test_the_learning_rate_rises_over_a_tenth_of_the_steps_and_falls_as_a_cosine() -> None:
    pace = _Pace(Recipe(steps=100, learning_rate=2.0))
    expected = {0: 0.2, 5: 1.1, 10: 2.0, 40: 1.5, 55: 1.0, 100: 0.0}
    for step, rate in expected.items():
        assert pace.learning_rate(step) == pytest.approx(rate, abs=1e-12)
    assert [pace.is_over(step) for step in (0, 99, 100)] == [False, False, True]


def test_an_epoch_has_every_image_once_in_an_order_of_its_own() -> None:
    numbers = torch.arange(10).unsqueeze(1)
    stream = ImageStream(numbers, Recipe(steps=1, learning_rate=1, batch_size=3, seed=4))
    assert stream.batch_size == 3
    epochs = [torch.cat([stream.batch(3 * epoch + place) for place in range(3)]).flatten() for epoch in range(3)]
    assert all(len(set(epoch.tolist())) == 9 for epoch in epochs)
    assert len({tuple(epoch.tolist()) for epoch in epochs}) == 3
    assert set(torch.cat(epochs).tolist()) == set(range(10))


def test_batches_depend_on_seed_and_step_alone_and_tokens_are_left_as_they_are() -> None:
    images, tokens = torch.randn(12, 2, 6, 6), torch.randint(9, (12, 5))

    def batch(values: Tensor, seed: int, step: int) -> Tensor:
        return ImageStream(values, Recipe(steps=1, learning_rate=1, batch_size=4, seed=seed)).batch(step)

    assert torch.equal(batch(images, 1, 5), batch(images, 1, 5))
    assert not torch.equal(batch(images, 1, 5), batch(images, 2, 5))
    assert not torch.equal(batch(images, 1, 5), batch(images, 1, 6))
    known = {tuple(row) for row in tokens.tolist()}
    assert {tuple(row) for row in batch(tokens, 1, 5).tolist()} <= known
    assert not any(torch.equal(image, other) for image in batch(images, 1, 5) for other in images)


def test_fewer_images_than_a_batch_make_one_batch() -> None:
    stream = ImageStream(torch.arange(3).unsqueeze(1), Recipe(steps=1, learning_rate=1, batch_size=64))
    assert stream.batch_size == 3
    assert [sorted(stream.batch(step).flatten().tolist()) for step in range(3)] == [[0, 1, 2]] * 3
