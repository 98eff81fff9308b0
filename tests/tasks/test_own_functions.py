"""A loss and a metric of the user's own, named as `package.module:function`."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from small_nets import batches, build
from torch import Tensor, nn
from torch.nn import functional

import cleanai_ray as cleanai
from cleanai_ray.errors import CleanAIError, EvaluationError
from cleanai_ray.tasks import Task, find_task
from cleanai_ray.tasks.own import task_with

SOURCE = """
import torch

def double_loss(outputs, targets):
    return 2 * torch.nn.functional.cross_entropy(outputs, targets)

def loss_per_sample(outputs, targets):
    return torch.nn.functional.cross_entropy(outputs, targets, reduction="none")

def three(a, b, c):
    return 0.0

def balanced(predicted, targets):
    found = predicted.argmax(1)
    return sum(float((found[targets == c] == c).float().mean()) for c in targets.unique()) / len(targets.unique())

def loss(predicted, targets):
    return 0.5

def merit(predicted, targets):
    return 0.5

def answers(predicted, targets):
    return float((predicted > 0).float().mean())

def errors(predicted, targets):
    return int((predicted.argmax(1) != targets).sum())
errors.higher_is_better = False

def accuracy(predicted, targets):
    return 0.5

def failing(predicted, targets):
    raise RuntimeError("no such thing")

def text(predicted, targets):
    return "good"

class Collected:
    def __init__(self):
        self.right = self.number = 0
    def update(self, predicted, targets):
        self.right += (predicted.argmax(1) == targets).sum()
        self.number += len(targets)
    def compute(self):
        return self.right / self.number

class Needy(Collected):
    def __init__(self, classes):
        super().__init__()

def made():
    return Needy(3)

def nothing():
    return 3
"""


@pytest.fixture(autouse=True)
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The functions, in a module of the current directory, which is not on Python's path."""
    (tmp_path / "own_functions.py").write_text(SOURCE)
    monkeypatch.chdir(tmp_path)
    yield
    sys.modules.pop("own_functions", None)


def own(loss: str | None = None, metric: str | None = None, name: str = "classification") -> Task:
    return task_with(name, *(each and f"own_functions:{each}" for each in (loss, metric)))


def test_without_functions_a_task_is_itself() -> None:
    assert type(task_with("segmentation")) is type(find_task("segmentation"))


def test_the_loss_is_what_training_and_gradients_read() -> None:
    model, (inputs, targets) = build("plain"), batches()[0]
    task = own("double_loss")
    with torch.no_grad():
        expected = 2 * functional.cross_entropy(model(inputs), targets)
        torch.testing.assert_close(task.loss(model(inputs), targets), expected)
        torch.testing.assert_close(task.network_loss(task.network(model), inputs, targets), expected)
    assert task.name == "classification"
    assert task.metric_name == "accuracy"
    before, after = (
        cleanai.fine_tune(build("plain"), batches(sizes=(8,)), batches(), task=each, epochs=1, early_stopping=None)
        for each in (find_task("classification"), task)
    )
    assert after.history[0]["train_loss"] == pytest.approx(2 * before.history[0]["train_loss"], rel=1e-4)


def test_a_view_of_a_model_gives_the_loss_what_the_model_returns() -> None:
    task = own("double_loss", name="multilabel_classification")
    model, inputs = nn.Linear(4, 3), torch.randn(5, 4)
    targets = torch.zeros(5, 3)
    found = task.network_loss(task.network(model), inputs, targets)
    torch.testing.assert_close(found, 2 * functional.cross_entropy(model(inputs), targets))


def test_a_metric_is_asked_for_all_samples_at_once() -> None:
    logits = torch.eye(3)[torch.tensor([0, 0, 1, 1, 2])]
    targets = torch.tensor([0, 1, 1, 1, 2])
    pairs = [(logits[:2], targets[:2]), (logits[2:], targets[2:])]
    found = cleanai.evaluate(nn.Identity(), pairs, task=own(metric="balanced"))
    assert (found.metric_name, found.num_samples) == ("balanced", 5)
    assert found.value == found.merit == pytest.approx((1 + 2 / 3 + 1) / 3)  # per batch it would be another
    assert found.loss == pytest.approx(float(functional.cross_entropy(logits, targets)), rel=1e-5)
    for metric in ("Collected", "made"):
        assert cleanai.evaluate(nn.Identity(), pairs, task=own(metric=metric)).value == pytest.approx(4 / 5)


def test_a_metric_needs_no_label_by_which_the_task_would_score() -> None:
    """Macro AP is undefined where no sample has a class, and binary cross-entropy of logits 0 is log 2."""
    pairs = [(torch.zeros(2, 3), torch.zeros(2, 3))]
    task = own(metric="answers", name="multilabel_classification")
    found = cleanai.evaluate(nn.Identity(), pairs, task=task)
    assert (found.value, found.loss, found.num_samples) == (0.0, pytest.approx(math.log(2)), 2)


def test_a_metric_of_which_a_low_value_is_good_is_compared_by_a_falling_function() -> None:
    task = own(metric="errors")
    found = cleanai.evaluate(nn.Identity(), [(torch.eye(3), torch.tensor([0, 0, 0]))], task=task)
    assert found.metric_name == task.metric_name == "errors (lower is better)"
    assert (found.value, found.merit) == (2.0, pytest.approx(1 / 3))


@pytest.mark.parametrize(
    ("loss", "metric", "message"),
    [
        ("absent", None, r"task.loss 'own_functions:absent': 'absent' is not a function .* callable there: .*balanced"),
        ("three", None, r"task.loss 'own_functions:three' cannot be called with 2 arguments; allowed: .*\(outputs, "),
        (None, "three", r"task.metric 'own_functions:three' cannot be called with 2 arguments"),
        (
            None,
            "accuracy",
            r"'own_functions:accuracy' has the name of a task.s own metric; allowed: .* not called",
        ),
        (None, "loss", r"'own_functions:loss' has the name of a column of history.parquet; .* called loss or merit"),
        (None, "merit", r"'own_functions:merit' has the name of a column of history.parquet"),
        (
            None,
            "Needy",
            r"'own_functions:Needy' is a class that needs arguments; allowed: a function without arguments",
        ),
        (None, "nothing", r"'own_functions:nothing' returned int, which has no update; allowed: .*compute"),
    ],
)
def test_functions_that_do_not_fit_are_refused_at_once(loss: str, metric: str, message: str) -> None:
    with pytest.raises(CleanAIError, match=message):
        own(loss, metric)


def test_a_module_that_is_not_there_is_named() -> None:
    with pytest.raises(CleanAIError, match=r"task.metric 'not_there:f': module 'not_there' cannot be imported"):
        task_with("classification", metric="not_there:f")
    with pytest.raises(CleanAIError, match=r"task.loss is 'f'; allowed: package.module:function"):
        task_with("classification", loss="f")


def test_what_a_function_returns_is_checked() -> None:
    task = own("loss_per_sample")
    with pytest.raises(CleanAIError, match=r"returned torch.float32 of shape \[3\]; allowed: one number"):
        task.loss(torch.eye(3), torch.tensor([0, 1, 2]))
    with pytest.raises(CleanAIError, match=r"finetune.label_smoothing is 0.1; allowed with a task.loss of your own: 0"):
        own("double_loss").loss(torch.eye(3), torch.tensor([0, 1, 2]), 0.1)
    pairs: list[tuple[Tensor, Tensor]] = [(torch.eye(3), torch.tensor([0, 1, 2]))]
    for metric, message in (
        ("failing", r"task.metric 'own_functions:failing' failed with RuntimeError: no such thing"),
        ("text", r"task.metric 'own_functions:text' returned str; allowed: one number"),
    ):
        with pytest.raises(EvaluationError, match=message):
            cleanai.evaluate(nn.Identity(), pairs, task=own(metric=metric))
    with pytest.raises(EvaluationError, match=r"returned 12; allowed: 0 to 1, or set its attribute higher_is_better"):
        own(metric="balanced").own_metric.merit(12.0)  # type: ignore[attr-defined]
    with pytest.raises(EvaluationError, match=r"returned -1; allowed: 0 or more"):
        own(metric="errors").own_metric.merit(-1.0)  # type: ignore[attr-defined]
    assert own(metric="errors").own_metric.merit(float("nan")) == 0.0  # type: ignore[attr-defined]


def test_what_the_guide_shows_works() -> None:
    text = (Path(__file__).resolve().parents[2] / "docs" / "how-to" / "other-tasks.md").read_text()
    Path("shown.py").write_text(re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)[1])
    task = task_with("classification", "shown:focal", "shown:balanced_accuracy")
    logits = torch.tensor([[2.0, 0.0], [0.0, 1.0], [3.0, 0.0]])
    targets = torch.tensor([0, 1, 1])
    found = cleanai.evaluate(nn.Identity(), [(logits, targets)], task=task)
    assert (found.metric_name, found.value) == ("balanced_accuracy", pytest.approx((1 + 1 / 2) / 2))
    right = [float(row.softmax(0)[label]) for row, label in zip(logits, targets, strict=True)]
    expected = sum(-((1 - share) ** 2) * math.log(share) for share in right) / 3  # Lin et al. 2017, gamma 2
    assert float(task.loss(logits, targets)) == pytest.approx(expected, rel=1e-5)
    sys.modules.pop("shown", None)
