"""Multi-label classification: macro AP, binary cross-entropy, and answers that are compared class by class."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score
from torch import Tensor, nn
from torch.nn import functional

import cleanai_ray as cleanai
from cleanai_ray.errors import EvaluationError
from cleanai_ray.repair import repair
from cleanai_ray.tasks import find_task
from cleanai_ray.tasks.multilabel_classification import average_precision

TASK = "multilabel_classification"
CLASSES = 3


def data(number: int = 192) -> list[tuple[Tensor, Tensor]]:
    """Inputs and marks: a class is there where a linear function of the inputs is positive."""
    generator = torch.Generator().manual_seed(0)
    inputs, weights = (torch.randn(rows, 6, generator=generator) for rows in (number, CLASSES))
    return [(part, (part @ weights.T > 0.5).float()) for part in inputs.split(32)]


def net() -> nn.Module:
    torch.manual_seed(0)
    layers = (nn.Linear(6, 24), nn.ReLU(), nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, CLASSES))
    return nn.Sequential(*layers).eval()


def test_average_precision_by_hand() -> None:
    # Ranked: 1, 0, 1, 1, 0. Precision at the three that are there: 1/1, 2/3, 3/4.
    found = average_precision(torch.tensor([9.0, 7.0, 5.0, 3.0, 1.0]), torch.tensor([1, 0, 1, 1, 0]))
    assert found == pytest.approx((1 + 2 / 3 + 3 / 4) / 3)
    # All equal: one threshold, at which two of five are there.
    assert average_precision(torch.zeros(5), torch.tensor([1, 0, 0, 1, 0])) == pytest.approx(2 / 5)
    assert average_precision(torch.ones(3), torch.zeros(3)) is None
    # What is not a number is last: the one that is there is third of three.
    assert average_precision(torch.tensor([1.0, torch.nan, 0.0]), torch.tensor([0, 1, 0])) == pytest.approx(1 / 3)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(-3, 3), st.booleans()), min_size=1, max_size=30))
def test_average_precision_is_that_of_scikit_learn(samples: list[tuple[int, bool]]) -> None:
    values, marks = (np.array(part, dtype=float) for part in zip(*samples, strict=True))
    found = average_precision(torch.tensor(values), torch.tensor(marks))
    assert found == (pytest.approx(average_precision_score(marks, values)) if marks.any() else None)


def test_the_score_is_the_mean_over_classes_that_occur() -> None:
    logits = torch.tensor([[2.0, 0.0, 1.0], [1.0, 0.0, -1.0], [0.0, 0.0, 3.0]])
    marks = torch.tensor([[1, 0, 0], [1, 0, 1], [0, 0, 0]])
    found = cleanai.evaluate(nn.Identity(), [(logits[:2], marks[:2]), (logits[2:], marks[2:])], task=TASK)
    assert (found.metric_name, found.num_samples) == ("macro AP", 3)
    assert found.parts == (pytest.approx(1.0), None, pytest.approx(1 / 3))
    assert found.value == found.merit == pytest.approx((1 + 1 / 3) / 2)
    answers = logits.sigmoid()
    pairs = zip(answers.flatten(), marks.flatten(), strict=True)
    losses = [-(torch.log(answer) if mark else torch.log(1 - answer)) for answer, mark in pairs]
    assert found.loss == pytest.approx(float(sum(losses)) / 9, rel=1e-5)


def test_answers_are_compared_class_by_class() -> None:
    """The softmax of [0, z] is (1 - sigmoid(z), sigmoid(z))."""
    model = net()
    inputs = data()[0][0]
    network = find_task(TASK).network(model)
    with torch.no_grad():
        shares, logits = network(inputs).softmax(1), model(inputs)
    assert shares.shape == (len(inputs), 2, CLASSES)
    torch.testing.assert_close(shares[:, 1], logits.sigmoid())
    assert find_task(TASK).restored(network)(inputs).shape == logits.shape


def test_smoothing_moves_marks_inwards() -> None:
    logits, marks = torch.tensor([[0.3, -2.0]]), torch.tensor([[1.0, 0.0]])
    found = find_task(TASK).loss(logits, marks, 0.2)
    expected = functional.binary_cross_entropy(logits.sigmoid(), torch.tensor([[0.9, 0.1]]))
    torch.testing.assert_close(found, expected)
    assert float(find_task(TASK).hits(logits, torch.tensor([[1, 1]]))) == 0.5


def test_a_model_is_pruned_repaired_and_fine_tuned_with_a_teacher() -> None:
    batches, model = data(), net()
    cleanai.fine_tune(model, batches, batches, task=TASK, epochs=15, optimizer="adamw", learning_rate=0.01)
    assert cleanai.evaluate(model, batches, task=TASK).value > 0.95
    dense = copy.deepcopy(model)
    result = cleanai.prune(model, batches[0][0][:1], batches, method="taylor", ratio=0.5, task=TASK, round_to=None)
    assert result.model[4].out_features == CLASSES
    pruned = cleanai.evaluate(result.model, batches, task=TASK)
    fixed = repair(model, result, batches, task=TASK)
    inputs = torch.cat([part for part, _ in batches])
    with torch.no_grad():
        wanted, models = dense(inputs).sigmoid(), (result.model, fixed.model)
        apart = [(wanted - each(inputs).sigmoid()).abs().mean() for each in models]
    assert apart[1] < apart[0]
    options = {"epochs": 2, "optimizer": "adamw", "learning_rate": 0.003, "distillation": {"weight": 1.0}}
    tuned = cleanai.fine_tune(fixed.model, batches, batches, task=TASK, teacher=dense, **options)
    assert tuned.history[-1]["validation_macro AP"] > pruned.value
    assert 0 <= tuned.history[-1]["train_accuracy"] <= 1


@pytest.mark.parametrize("targets", [torch.zeros(2, dtype=torch.int64), torch.zeros(2, 4)])
def test_targets_of_another_shape_are_refused(targets: Tensor) -> None:
    with pytest.raises(EvaluationError, match=r"targets are \[2.*output \[2, 3\]; allowed .* the same shape"):
        cleanai.evaluate(nn.Identity(), [(torch.zeros(2, 3), targets)], task=TASK)
    with pytest.raises(EvaluationError, match="none of 2 samples has a label"):
        cleanai.evaluate(nn.Identity(), [(torch.zeros(2, 3), torch.zeros(2, 3))], task=TASK)
