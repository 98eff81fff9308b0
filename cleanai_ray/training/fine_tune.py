"""Fine-tuning: the only training loop, in plain torch, written against `TrainingContext`.

Several processes train like one: gradients and the statistics of batch-norm are those of the global batch, however it
is shared out. Only modules that draw random numbers, such as dropout, differ by process. On CUDA, training uses
autocast (`precision.py`), channels-last memory and a fused optimiser, and nothing waits for the device before an epoch
ends.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from cleanai_ray.config.finetune import FineTuneSection
from cleanai_ray.errors import ArtifactError
from cleanai_ray.evaluation.scoring import score
from cleanai_ray.nn.batch_limit import process_limit
from cleanai_ray.nn.hooks import require_no_hooks
from cleanai_ray.nn.modes import preserved_modes
from cleanai_ray.tasks.base import Score, Task
from cleanai_ray.tasks.score import NoLabelError
from cleanai_ray.training.averaging import weight_average
from cleanai_ray.training.checkpoint_parts import copied_to_cpu, epoch_seed, fingerprint
from cleanai_ray.training.context import TrainingContext, TrainingError
from cleanai_ray.training.data import Batches, TrainingData
from cleanai_ray.training.distillation import Supervision, with_answers
from cleanai_ray.training.part import TrainingPart
from cleanai_ray.training.position import CheckpointClock, EpochPosition
from cleanai_ray.training.progress import Progress
from cleanai_ray.training.stepper import Stepper, lay_out
from cleanai_ray.training.synchronized import global_batch_norm

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class FineTuneResult:
    """The result of a training.

    Attributes:
        history: A row per epoch that ran, with the columns of `schemas.HISTORY` except trial_id and step. In
            other tasks than classification, `validation_accuracy` is replaced by `validation_` and the score's name.
        epochs_run: Epochs that ran, including those before a resumption.
        best_epoch: The epoch whose weights the model has, from 1 (continuing the numbers of earlier parts); 0 where
            none was better than the start.
    """

    history: tuple[dict[str, Any], ...]
    epochs_run: int
    best_epoch: int


def fine_tune(
    model: nn.Module,
    *,
    section: FineTuneSection,
    data: TrainingData,
    context: TrainingContext,
    seed: int,
    supervision: Supervision | None = None,
    part: TrainingPart | None = None,
) -> FineTuneResult:
    """Train a model in place; it ends with the weights of its best epoch, or with its own where none was better.

    The best epoch has the highest validation accuracy (or the best score of another task); of several, it is the first.
    The model as it was given is validated before the first epoch, and stays unless an epoch is better; see
    `TrainingData` for starts that must be judged by other samples, or need not be judged.
    Where targets are None, the teacher's answers replace them, and accuracy is the agreement with the teacher.

    Torch's global random state is the same before and after; every epoch has a seed of its own, and a checkpoint within
    an epoch holds the random state, so that a run that resumes gives the same weights as an uninterrupted one. A
    checkpoint of another section, seed, architecture or part, or a damaged one, is ignored. The model is moved to the
    context's device, and its modules end in the mode that they were in.

    Args:
        model: A model of the task; for classification, it maps images [N, ...] to logits [N, classes].
        section: Epochs, optimizer, schedule, loss, averaging, checkpoints and early stopping.
        data: The batches to learn from and to validate on.
        context: Device, reports, checkpoints and the other processes.
        seed: Seed of everything random in an epoch.
        supervision: The task, and the teacher where `section.distillation` or missing targets need one; by default
            classification without a teacher.
        part: Which of several trainings of the model this is; by default the only one.

    Raises:
        TrainingError: When the loss is not finite (the model is then left as it is), an epoch has too few batches,
            nothing is trainable, there is distillation but no teacher, or several processes train and the task's
            score cannot be computed in shares.
        EvaluationError: When a hook is left on the model, there is no validation batch, or no label in any of them.
    """
    if section.epochs == 0:
        return FineTuneResult(history=(), epochs_run=0, best_epoch=0)
    supervision, part = supervision or Supervision(), part or TrainingPart()
    _require_trainable(model, data.steps_per_epoch, context, supervision.task)
    with _surroundings(model, supervision.teacher, context):
        progress = _Run(model, section, data, context, seed, supervision, part).train()
    model.load_state_dict(progress.weights)
    best = part.epochs_before + progress.best_epoch if progress.best_epoch else 0
    return FineTuneResult(progress.final_history(), progress.epochs_run, best)


def _require_trainable(model: nn.Module, steps_per_epoch: int, context: TrainingContext, task: Task) -> None:
    if steps_per_epoch < 1:
        raise TrainingError(f"steps_per_epoch is {steps_per_epoch}, at least 1 is needed")
    if context.world_size > 1 and not task.in_processes:
        raise TrainingError(f"{context.world_size} processes train; allowed for {task.scored_by}: 1")
    require_no_hooks(model)


@contextlib.contextmanager
def _surroundings(model: nn.Module, teacher: nn.Module | None, context: TrainingContext) -> Iterator[None]:
    """Put both models on the device; restore modes, memory format and torch's random state at the end."""
    device = context.device
    with (
        global_batch_norm(model, device) if context.world_size > 1 else contextlib.nullcontext(),
        preserved_modes(model),
        torch.random.fork_rng([device] if device.type == "cuda" else []),
        preserved_modes(nn.Identity() if teacher is None else teacher),
    ):
        model.to(device)
        if teacher is not None:
            teacher.to(device).eval()
        try:
            yield
        finally:
            if device.type == "cuda":
                model.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]


class _Run:
    """One training, from its first epoch or from a checkpoint on."""

    def __init__(
        self,
        model: nn.Module,
        section: FineTuneSection,
        data: TrainingData,
        context: TrainingContext,
        seed: int,
        supervision: Supervision,
        part: TrainingPart,
    ) -> None:
        self._model = model
        self._section = section
        self._data = data
        self._context = context
        self._seed = seed
        self._supervision = supervision
        self._part = part
        self._clock = CheckpointClock(section.checkpoint_minutes, context)
        self._position: EpochPosition | None = None
        self._fingerprint = fingerprint(model, section, data.steps_per_epoch, seed, part)
        lay_out(model, context.device)
        self._average = None if section.ema_decay is None else weight_average(model, section.ema_decay)
        self._stepper = Stepper(
            model,
            section=section,
            steps_per_epoch=data.steps_per_epoch,
            context=context,
            supervision=supervision,
            average=self._average,
        )

    def train(self) -> Progress:
        section = self._section
        progress = self._restore()
        if progress is None:
            progress = self._begin()
        self._stepper.prepare()
        while not progress.is_over(section.epochs, section.early_stopping):
            epoch = progress.epochs_run + 1
            self._run_epoch(epoch, progress)
            over = progress.is_over(section.epochs, section.early_stopping)
            if over or epoch % section.save_every_n_epochs == 0:
                self._save(progress)
        if progress.start_merit is not None:
            self._kept.load_state_dict(progress.weights)
            progress.settle(self._score_unseen())
        return progress

    def _begin(self) -> Progress:
        weights, data = copied_to_cpu(self._kept.state_dict()), self._data
        unseen = None if data.start_competes else self._score_unseen()
        return Progress.begin(self._validate() if data.start_competes else None, weights, unseen)

    def _score_unseen(self) -> Score | None:
        """Return the score on images that the start has not seen; None where there are none, or none has a label."""
        if self._data.unseen_batches is None:
            return None
        try:
            return self._score(self._data.unseen_batches)
        except NoLabelError:
            return None

    def _save(self, progress: Progress, position: EpochPosition | None = None) -> None:
        self._context.save_checkpoint(self._state(progress, position), self._part.name)
        self._clock.has_saved()

    @property
    def _kept(self) -> nn.Module:
        """The model that is validated and kept."""
        return self._model if self._average is None else self._average.module

    def _run_epoch(self, epoch: int, progress: Progress) -> None:
        number = self._part.epochs_before + epoch
        torch.manual_seed(epoch_seed(self._seed, number, self._context.rank))
        resumed, self._position = self._position, None

        def after_step(position: EpochPosition) -> None:
            if self._clock.is_due(position.done) and position.done < self._data.steps_per_epoch:
                self._save(progress, position)

        started = time.perf_counter()
        batches = self._data.batches_from(number, 0 if resumed is None else resumed.done)
        trained = self._stepper.run_epoch(epoch, batches, resumed, after_step)
        seconds = time.perf_counter() - started
        share = 1.0 if resumed is None else 1.0 - resumed.done / self._data.steps_per_epoch
        found = self._validate()
        is_best = progress.is_best(found)
        row = {
            "epoch": number,
            "train_loss": trained.loss,
            "train_accuracy": trained.accuracy,
            "validation_loss": found.loss,
            f"validation_{found.metric_name}": found.value,
            **({} if found.metric_name == "accuracy" else {"validation_merit": found.merit}),
            "learning_rate": trained.learning_rate,
            "images_per_second": share * trained.num_images / seconds,
            "is_best": is_best,
        }
        stopping = self._section.early_stopping
        weights = copied_to_cpu(self._kept.state_dict()) if is_best else None
        progress.add(row, found, weights, 0.0 if stopping is None else stopping.min_delta)
        self._context.report(row)

    def _validate(self) -> Score:
        try:
            return self._score(self._data.validation_batches)
        except NoLabelError as error:
            raise NoLabelError(f"the validation samples have no score: {error}") from error

    def _score(self, judged_by: Callable[[], Batches]) -> Score:
        context = self._context

        def validate() -> Score:
            batches = process_limit.split(judged_by())
            return score(
                self._kept,
                with_answers(batches, self._supervision, context.device),
                task=self._supervision.task,
                device=context.device,
                all_reduce=context.all_reduce if context.world_size > 1 else None,
            )

        return process_limit.within_memory(validate, "validation")

    def _state(self, progress: Progress, position: EpochPosition | None) -> dict[str, Any]:
        average = {} if self._average is None else self._average.module.state_dict()
        state = {
            "fingerprint": self._fingerprint,
            "model": self._model.state_dict(),
            "average": average,
            "stepper": self._stepper.state(),
            "progress": progress.state(),
            "position": None if position is None else position.state(self._context),
        }
        return copied_to_cpu(state)

    def _restore(self) -> Progress | None:
        try:
            state = self._context.load_checkpoint(self._part.name)
        except ArtifactError as error:
            _LOG.warning("training starts over: %s", error)
            return None
        if state is None or state.get("fingerprint") != self._fingerprint:
            return None
        self._model.load_state_dict(state["model"])
        if self._average is not None:
            self._average.module.load_state_dict(state["average"])
        self._stepper.restore(state["stepper"])
        if state["position"] is not None:
            self._position = EpochPosition.from_state(state["position"], self._context)
        return Progress.from_state(state["progress"])
