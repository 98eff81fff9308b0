"""The interface of a task: a loss, a score, and the way in which its models are called."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from cleanai_ray.registry import TASKS

Reduce = Callable[[Tensor], Tensor]
"""Sums a tensor over processes that each scored a share of the samples."""


class Score(Protocol):
    """The score of a model on a set of samples: the name of its metric, and its value."""

    @property
    def metric_name(self) -> str:
        """Name of the metric, as `Task.metric_name`: for instance `accuracy` or `mIoU`."""

    @property
    def value(self) -> float:
        """Value of the metric."""

    @property
    def merit(self) -> float:
        """The value where high is good, else a falling function of it; in [0, 1]. Training keeps the highest."""

    @property
    def loss(self) -> float:
        """Mean loss."""

    @property
    def num_samples(self) -> int:
        """Number of scored samples."""


class Scorer(ABC):
    """Collects predictions batch by batch, and returns their score."""

    @abstractmethod
    def add(self, predicted: Any, targets: Any) -> None:
        """Add a batch: the result of `Task.predict`, and the targets."""

    @abstractmethod
    def result(self, all_reduce: Reduce | None = None) -> Score:
        """Return the score of all batches, over all processes where `all_reduce` is given.

        Raises:
            EvaluationError: When nothing was added.
            NoLabelError: When no sample has a label by which it could be scored.
        """

    def mean_loss(self) -> tuple[float, int]:
        """Return the mean loss of all batches, and the number of samples, without the rest of the score.

        Raises:
            EvaluationError: When nothing was added.
        """
        found = self.result()
        return found.loss, found.num_samples


class Task(ABC):
    """The purpose of a network: its loss and its score.

    Subclasses are registered in `cleanai_ray.registry.TASKS`, and hold no state.

    A batch is (inputs, targets): one tensor whose first dimension numbers the samples, and whatever the task's loss
    reads. Pruning and repair call `network(model)`, which has the model's own modules under their own names.

    Attributes:
        name: The name it is registered under.
        metric_name: Name of its score.
        in_processes: True if several processes can each score a share of the samples.
    """

    name: ClassVar[str]
    metric_name: ClassVar[str]
    in_processes: ClassVar[bool] = True

    @property
    def scored_by(self) -> str:
        """What scores, in error messages on several processes."""
        return f"task {self.name}"

    def network(self, model: nn.Module) -> nn.Module:
        """Return a module that shares the model's own, and maps inputs to a tensor or a tuple of tensors.

        The (first) tensor holds logits with the classes in dimension 1; repair compares its softmax with the dense
        model's. Every layer with weights must contribute to the tensors.
        """
        return model

    def restored(self, network: nn.Module) -> nn.Module:
        """Return the model that `network`, or a copy of it, is a view of."""
        return network

    def ignored_layers(self, model: nn.Module) -> tuple[str, ...]:
        """Return the names of modules that keep their output width, submodules included."""
        return ()

    def example_input(self, shape: Sequence[int]) -> Tensor:
        """Return an input of a given shape, on the CPU, to trace a model with."""
        return torch.zeros(tuple(shape))

    def as_inputs(self, noise: Tensor, num_classes: int) -> Tensor:
        """Return inputs of the shape of standard normal noise, to run models of a study with: the noise itself."""
        return noise

    def chosen(self, predicted: Any, targets: Any, places: Sequence[int]) -> tuple[Any, Any]:
        """Return what `predict` returned for a batch, and its targets, for the samples at some places of it."""
        return predicted[list(places)], targets[list(places)]

    def train_outputs(self, model: nn.Module, inputs: Tensor, targets: Any) -> Any:
        """Return the outputs of a model in training mode for a batch."""
        return model(inputs)

    @abstractmethod
    def logits(self, outputs: Any) -> Tensor:
        """Return the logits [N, classes, ...] among the outputs of `train_outputs`, for distillation.

        Raises:
            TaskError: When there are none.
        """

    @abstractmethod
    def loss(self, outputs: Any, targets: Any, label_smoothing: float = 0.0) -> Tensor:
        """Return the mean loss of the outputs of `train_outputs`, a scalar."""

    @abstractmethod
    def network_loss(self, network: nn.Module, inputs: Tensor, targets: Any) -> Tensor:
        """Return the mean loss of a batch, a scalar computed by `network`; for methods that read gradients."""

    @abstractmethod
    def hits(self, outputs: Any, targets: Any) -> Tensor | None:
        """Return the sum over samples of the share of right answers, a scalar; None where answers are not counted."""

    @abstractmethod
    def predict(self, model: nn.Module, inputs: Tensor, targets: Any) -> Any:
        """Return what the scorer reads of a batch, from a model in evaluation mode.

        Raises:
            EvaluationError: When the model's output does not fit this task.
        """

    @abstractmethod
    def new_scorer(self) -> Scorer:
        """Return a scorer without samples."""


def find_task(task: str | Task) -> Task:
    """Return a task by its name; a task is returned unchanged.

    Raises:
        RegistryError: When the name is unknown.
    """
    if isinstance(task, Task):
        return task
    found: Task = TASKS.get(task)()
    return found
