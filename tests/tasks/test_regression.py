"""Regression: squared error, R squared, and predictions that are compared as normal distributions."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn

import cleanai_ray as cleanai
from cleanai_ray.errors import EvaluationError
from cleanai_ray.repair import repair
from cleanai_ray.repair.outputs import divergence, log_probabilities
from cleanai_ray.tasks import find_task
from cleanai_ray.tasks.regression import normal_logits

TASK = "regression"


def linear_data(number: int = 128) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(number, 6, generator=generator)
    return [(part, part[:, :2] - part[:, 2:4]) for part in inputs.split(32)]


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 24), nn.ReLU(), nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 2)).eval()


def test_scores_by_hand() -> None:
    # Errors 1, 0, 2, 1 of targets 0, 2, 4, 6: mean square 6 / 4; the squares about their mean 3 are 9 + 1 + 1 + 9.
    targets = torch.tensor([0.0, 2.0, 4.0, 6.0])
    found = cleanai.evaluate(
        nn.Identity(), [(torch.tensor([[1.0], [2.0]]), targets[:2]), (torch.tensor([[2.0], [7.0]]), targets[2:])],
        task=TASK,
    )  # fmt: skip
    assert found.metric_name == "RMSE"
    assert found.value == pytest.approx(math.sqrt(1.5))
    assert found.loss == pytest.approx(1.5)
    assert found.merit == pytest.approx(1 - 6 / 20)
    assert found.num_samples == 4


def test_a_model_worse_than_the_mean_explains_nothing() -> None:
    found = cleanai.evaluate(nn.Identity(), [(torch.tensor([[9.0], [-9.0]]), torch.tensor([0.0, 1.0]))], task=TASK)
    assert found.merit == 0.0


@pytest.mark.parametrize("difference", [0.05, 0.7, 2.0])
def test_the_distance_of_two_predictions_is_half_their_squared_difference(difference: float) -> None:
    """KL of normal distributions of variance 1 (Kullback 1959); three targets add up to their mean."""
    one = torch.tensor([[0.3, -2.1, 1.0], [4.0, 0.0, -3.3]], dtype=torch.float64)
    logs = [normal_logits(values).log_softmax(1) for values in (one, one + difference)]
    assert divergence(*logs) == pytest.approx(difference**2 / 2, rel=1e-6)


def test_a_regressor_is_pruned_repaired_and_fine_tuned() -> None:
    data, model = linear_data(), net()
    cleanai.fine_tune(model, data, data, task=TASK, epochs=20, optimizer="adamw", learning_rate=0.01)
    before = copy.deepcopy(model.state_dict())
    result = cleanai.prune(model, data[0][0][:1], data, method="taylor", ratio=0.5, task=TASK, round_to=None)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert (result.model[0].out_features, result.model[2].out_features, result.model[4].out_features) == (12, 12, 2)
    pruned = cleanai.evaluate(result.model, data, task=TASK)
    fixed = repair(model, result, data, task=TASK)
    found = cleanai.evaluate(fixed.model, data, task=TASK)
    assert found.value < pruned.value
    network, inputs = find_task(TASK).network, [data[0][0]]
    distances = [
        divergence(log_probabilities(network(model), inputs), log_probabilities(network(other), inputs))
        for other in (result.model, fixed.model)
    ]
    assert distances[1] < distances[0]
    tuned = cleanai.fine_tune(fixed.model, data, data, task=TASK, epochs=3, optimizer="adamw", learning_rate=0.003)
    assert tuned.history[-1]["validation_RMSE"] < pruned.value
    assert tuned.history[-1]["train_accuracy"] is None


def test_an_output_of_another_shape_is_refused() -> None:
    with pytest.raises(EvaluationError, match=r"output is \[2, 3\], allowed is \[2, 1\]"):
        cleanai.evaluate(nn.Identity(), [(torch.zeros(2, 3), torch.zeros(2))], task=TASK)
