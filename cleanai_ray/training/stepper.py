"""The steps of one training epoch: forward, loss, backward, clipping, update, averaging."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from cleanai_ray.config.finetune import FineTuneSection
from cleanai_ray.nn.batch_limit import split_batch
from cleanai_ray.nn.faults import is_out_of_memory, release_memory
from cleanai_ray.nn.notices import notice
from cleanai_ray.training.compiled import compiled, is_of_compiler, tell_why_not
from cleanai_ray.training.context import TrainingContext, TrainingError
from cleanai_ray.training.distillation import Supervision, build_objective
from cleanai_ray.training.epoch_sums import EpochSums, RunningSums
from cleanai_ray.training.optimizer import build_optimizer
from cleanai_ray.training.position import EpochPosition
from cleanai_ray.training.precision import Precision
from cleanai_ray.training.prefetch import prefetch
from cleanai_ray.training.schedule import learning_rates

AfterStep = Callable[[EpochPosition], None]


class Stepper:
    """Runs training steps: holds the optimizer, the gradient scaler and the loss of a training.

    Where the memory of the device runs out, the batch is computed in parts, whose gradients are added up, and the step
    is taken again: it is still the step of the whole batch, but for batch-norm, which sees the parts, and those of the
    passes that failed as well. Several processes must do so together, so there the error is raised, and
    `context.num_parts` says how many parts to begin with.

    Args:
        model: The model, on the context's device.
        section: Optimizer, schedule, loss, precision, compilation and gradient clipping.
        steps_per_epoch: Batches an epoch.
        context: Device and other processes.
        supervision: The task, and the teacher in evaluation mode on the device, if any.
        average: Moving average to update after every step, if any.

    Raises:
        TrainingError: When nothing is trainable, or there is distillation but no teacher.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        section: FineTuneSection,
        steps_per_epoch: int,
        context: TrainingContext,
        supervision: Supervision,
        average: AveragedModel | None = None,
    ) -> None:
        self._model = model
        self._wrapped = self._trained = model
        self._section = section
        self._steps_per_epoch = steps_per_epoch
        self._context = context
        self._average = average
        # On CPUs it would also be up to 1.4 times as fast, but the backward pass of torch 2.14's oneDNN crashes the
        # process in strided convolutions of a few channels, which pruning leaves.
        if context.device.type == "cuda":
            model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._task = supervision.task
        self._objective = build_objective(section, supervision)
        self._optimizer = build_optimizer(model, section)
        self._rates = learning_rates(section, steps_per_epoch)
        self._precision = Precision(section, context.device)
        self._scaler = self._precision.scaler
        self._num_parts = context.num_parts

    def prepare(self) -> None:
        """Join the other processes; called once, when the weights are those that training starts from."""
        self._wrapped = self._context.wrap_model(self._model)
        self._trained = compiled(self._wrapped, self._section.compile)

    def run_epoch(
        self,
        epoch: int,
        batches: Iterable[tuple[Tensor, Any]],
        start: EpochPosition | None = None,
        after_step: AfterStep = lambda position: None,
    ) -> EpochSums:
        """Train on the batches of an epoch.

        Args:
            epoch: Its number, from 1.
            batches: Pairs of inputs and targets (None where there are none), those from `start` on; as many are taken
                as the epoch has steps left.
            start: The part of the epoch that has run before; by default none.
            after_step: Called after every step, where another process could go on.

        Raises:
            TrainingError: When the loss is not finite, or there are too few batches.
        """
        self._trained.train()
        done, rate = (0, 0.0) if start is None else (start.done, self._rates[self._first(epoch) + start.done - 1])
        sums = RunningSums(epoch, self._context, None if start is None else start.sums)
        left = islice(batches, self._steps_per_epoch - done)
        for inputs, targets in prefetch(left, self._context.device):
            if start is not None:
                start.restore_random_state(self._context)
                start = None
            rate = self._rates[self._first(epoch) + done]
            step = self._step(inputs, targets, rate)
            done += 1
            sums.add(step, done, rate)
            after_step(EpochPosition(done=done, sums=sums.values))
        if done < self._steps_per_epoch:
            raise TrainingError(
                f"epoch {epoch} has {done} training batches, steps_per_epoch is {self._steps_per_epoch}"
            )
        return sums.result(rate)

    def state(self) -> dict[str, Any]:
        """Return the state of the optimizer and the gradient scaler; the schedule follows from the epoch."""
        return {"optimizer": self._optimizer.state_dict(), "scaler": self._scaler.state_dict()}

    def restore(self, state: dict[str, Any]) -> None:
        """Restore what `state` returned."""
        own = [group.get("fused") for group in self._optimizer.param_groups]
        self._optimizer.load_state_dict(state["optimizer"])
        # The state may be of another device: what is fused there need not be here, nor are weights laid out as there.
        for group, fused in zip(self._optimizer.param_groups, own, strict=True):
            group["fused"] = fused
        for parameter, values in self._optimizer.state.items():
            for name, value in values.items():
                if isinstance(value, Tensor) and value.shape == parameter.shape:
                    values[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
        if state["scaler"]:  # without a scaler, it is empty
            self._scaler.load_state_dict(state["scaler"])

    def _first(self, epoch: int) -> int:
        return (epoch - 1) * self._steps_per_epoch

    def _step(self, inputs: Tensor, targets: Any, rate: float) -> Tensor:
        """Take one step; return the batch's [sum of losses, hits, samples] without waiting for the device."""
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        found = self._gradients(inputs, targets)
        if self._section.gradient_clip is not None:
            self._scaler.unscale_(self._optimizer)
            nn.utils.clip_grad_norm_(self._parameters, self._section.gradient_clip)
        self._scaler.step(self._optimizer)
        self._scaler.update()
        if self._average is not None:
            self._average.update_parameters(self._model)
        return found

    def _gradients(self, inputs: Tensor, targets: Any) -> Tensor:
        """Leave the gradients of a batch's loss in the parameters, computed in as many parts as memory takes."""
        while True:
            self._optimizer.zero_grad(set_to_none=True)
            try:
                return self._add_gradients(inputs, targets)
            except TrainingError:
                raise
            except Exception as error:
                if is_out_of_memory(error) and self._context.world_size == 1 and self._num_parts < len(inputs):
                    self._num_parts = min(2 * self._num_parts, len(inputs))
                elif self._trained is not self._wrapped and is_of_compiler(error):
                    tell_why_not(error)
                    self._trained = self._wrapped.train()
                    continue
                else:
                    raise
            # Here the error is gone, and with it the frames that held the tensors.
            release_memory(self._context.device)

    def _add_gradients(self, inputs: Tensor, targets: Any) -> Tensor:
        parts = [(inputs, targets)]
        if self._num_parts > 1:
            parts = split_batch(inputs, targets, min(self._num_parts, len(inputs)))
        weight, sums = self._weight(inputs), []
        for number, (some, their_targets) in enumerate(parts, start=1):
            with self._without_exchange() if number < len(parts) else contextlib.nullcontext():
                with self._precision.autocast():
                    outputs = self._task.train_outputs(self._trained, some, their_targets)
                    loss, answers = self._objective(some, outputs, their_targets)
                share = 1.0 if len(parts) == 1 else len(some) / len(inputs)
                self._scaler.scale(loss * weight * share).backward()
            total = loss.detach().double() * len(some)
            hits = self._task.hits(outputs, answers)
            hits = torch.full_like(total, math.nan) if hits is None else hits.double()
            sums.append(torch.stack([total, hits, torch.full_like(total, len(some))]))
        if len(parts) > 1:
            notice(
                f"memory ran out: fine-tuning computes its batches of {len(inputs)} samples in {len(parts)} parts of "
                f"at most {max(len(some) for some, _ in parts)}; the gradients are those of the batch, but batch-norm "
                "takes its statistics from the parts"
            )
        return sums[0] if len(sums) == 1 else torch.stack(sums).sum(0)

    def _without_exchange(self) -> AbstractContextManager[None]:
        """Return a context in which processes do not average gradients: they do once a batch."""
        no_sync = getattr(self._wrapped, "no_sync", None)
        return contextlib.nullcontext() if no_sync is None else no_sync()

    def _weight(self, inputs: Tensor) -> Tensor | float:
        """Return the factor that turns the mean of the processes' mean losses into the mean over the global batch."""
        size = self._context.world_size
        if size == 1:
            return 1.0
        count = torch.full((), float(len(inputs)), device=self._context.device)
        return len(inputs) * size / self._context.all_reduce(count)
