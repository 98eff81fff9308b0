"""What every task has, and classification as one of them."""

from __future__ import annotations

import pytest
import torch
from small_nets import batches, build, example
from torch import nn

import cleanai_ray as cleanai
from cleanai_ray.errors import RegistryError
from cleanai_ray.evaluation.accuracy import Accuracy
from cleanai_ray.nn.view import as_model, as_network
from cleanai_ray.registry import TASKS
from cleanai_ray.tasks import Task, find_task
from cleanai_ray.training.context import TrainingError


@pytest.mark.parametrize("name", TASKS.names())
def test_a_task_says_what_it_is_called(name: str) -> None:
    if name == "detection":
        pytest.importorskip("torchmetrics")
    task = find_task(name)
    assert isinstance(task, Task)
    assert task.name == name
    assert task.metric_name
    assert find_task(task) is task
    assert TASKS.summaries()[name]
    assert task.example_input([2, 3]).shape == (2, 3)
    assert task.new_scorer() is not task.new_scorer()


def test_an_unknown_task_is_refused_by_name() -> None:
    known = "classification, detection, language_modelling, multilabel_classification, regression, segmentation"
    with pytest.raises(RegistryError, match=f"unknown task 'depth'; known: {known}"):
        cleanai.prune(build("plain"), example(), method="magnitude", ratio=0.5, task="depth")


def test_a_classifier_is_scored_and_fine_tuned_by_default() -> None:
    model = build("plain")
    found = cleanai.evaluate(model, batches())
    assert isinstance(found, Accuracy)
    assert (found.metric_name, found.value) == (find_task("classification").metric_name, found.accuracy)
    assert found.merit == found.accuracy
    tuned = cleanai.fine_tune(model, batches(sizes=(8, 8)), batches(), epochs=2, early_stopping=None)
    assert [row["epoch"] for row in tuned.history] == [1, 2]
    assert "validation_accuracy" in tuned.history[0]
    with pytest.raises(TrainingError, match="epochs"):
        cleanai.fine_tune(model, batches(), batches(), epochs=-1)


def test_a_view_shares_everything_but_the_forward_pass() -> None:
    model = build("plain")
    view = as_network(model, lambda network, images: (network.fc.weight, images))
    assert type(view) is not type(model)
    assert type(view).__qualname__ == type(model).__qualname__
    assert [name for name, _ in view.named_parameters()] == [name for name, _ in model.named_parameters()]
    assert view.conv1.weight is model.conv1.weight
    assert view(example())[0] is model.fc.weight
    assert model(example()).shape == (2, 3)
    back = as_model(view)
    assert type(back) is type(model)
    assert torch.equal(back(example()), model(example()))
    assert as_model(model) is model


def test_uses_of_every_output_are_counted() -> None:
    """A batch-norm that is not alone in reading a convolution must not take its shift."""

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(2, 4, 1, bias=False), nn.BatchNorm2d(4)

        def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            x = self.conv(images)
            return self.norm(x), torch.relu(x)

    from cleanai_ray.repair.trace import trace_consumers

    assert [consumer.norm for consumer in trace_consumers(Two(), example())] == [None]
