"""The judge of sets of blocks: the model without them, narrowed to a budget and repaired, on images held back."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cleanai_ray.errors import PruningError
from cleanai_ray.graph.blocks import find_blocks
from cleanai_ray.pruning.block_removal import chosen_blocks, describe_blocks
from cleanai_ray.pruning.measurements import Measurements
from cleanai_ray.pruning.plan import BlockPlan
from cleanai_ray.pruning.predicted_latency import PredictedLatency
from cleanai_ray.pruning.prune_result import PruneResult
from cleanai_ray.pruning.pruning_job import PruningJob
from cleanai_ray.repair import RepairOptions
from cleanai_ray.repair import repair as repair_model
from cleanai_ray.repair.images import is_held_back, read_images
from cleanai_ray.repair.outputs import divergence, log_probabilities
from cleanai_ray.sensitivity.blocks import REPAIR_IMAGES, first_images
from cleanai_ray.sensitivity.measuring import measure_for
from cleanai_ray.sensitivity.profile import probe_images
from cleanai_ray.statistics.calibration import Batch

PredictWithout = Callable[[Sequence[BlockPlan]], PredictedLatency]
"""Returns the predicted time of a model without some blocks, for budgets of latency."""


class BlockJudge:
    """Judges sets of blocks for one budget: the error is the mean KL(dense || pruned) in nats. No labels are used.

    A fifth of the images (at most `MAX_PROBE_IMAGES`) judges. On the others everything is measured that a set takes:
    the means of its branches, what the method reads, and a repair (on at most `REPAIR_IMAGES` of them). A method's
    search for allocations is left out.

    Args:
        job: The dense model, and how to prune it to the budget.
        batches: Calibration inputs [N, ...] or (inputs, targets).
        repair: The repair of each model; None: none.
        given: The measurements that are there already: the target's multiple.
        predict: Predicts times, for a budget of latency.

    Raises:
        CalibrationError: When there are no images.
    """

    def __init__(
        self,
        job: PruningJob,
        batches: Iterable[Batch],
        *,
        repair: RepairOptions | None,
        given: Measurements | None = None,
        predict: PredictWithout | None = None,
    ) -> None:
        options = {key: value for key, value in job.trial.options.items() if key != "search"}
        self._job = replace(job, trial=job.trial.model_copy(update={"options": options}))
        self._repair, self._predict = repair, predict
        self._given = given or Measurements()
        self._working, held = split_batches(list(batches))
        self._held = probe_images(held)
        self._reference = log_probabilities(job.network, self._held)
        self._blocks = find_blocks(job.network, job.example_inputs)
        self._impossible: PruningError | None = None

    def __call__(self, names: Sequence[str]) -> float:
        """Return the error of the model without some blocks.

        It is infinite where the budget cannot be met without them, and no number where the outputs are none.
        """
        try:
            result = self._pruned(names)
        except PruningError as error:
            self._impossible = self._impossible or error
            return math.inf
        model = result.model
        if self._repair is not None:
            fitted = first_images(read_images(self._working), REPAIR_IMAGES)
            model = repair_model(self._job.model, result, fitted, self._repair, task=self._job.task).model
        harm = divergence(self._reference, log_probabilities(self._job.task.network(model), self._held))
        return harm if math.isfinite(harm) else math.nan

    def require_met(self, error: float) -> None:
        """Check that the best set of blocks meets the budget.

        Raises:
            PruningError: When its error is infinite since pruning to the budget failed with and without blocks.
        """
        if math.isinf(error) and self._impossible is not None:
            raise self._impossible

    def _pruned(self, names: Sequence[str]) -> PruneResult:
        job = self._job
        chosen = chosen_blocks(self._blocks, names)
        plans = describe_blocks(job.network, job.example_inputs, self._working, chosen) if chosen else ()
        job = replace(job, blocks=plans)
        given = self._given if self._predict is None else replace(self._given, latency=self._predict(plans))
        return job.prune(job.trial, measure_for(job, given, self._working))


def split_batches(batches: Sequence[Batch]) -> tuple[list[Batch], list[Tensor]]:
    """Return the batches to measure on, with their targets, and the images held back, every fifth.

    They are those that `split_images` holds back. Of fewer than five images, none is: all do both.
    """
    working: list[Batch] = []
    held: list[Tensor] = []
    place = 0
    for batch in batches:
        images, targets = (batch, None) if isinstance(batch, Tensor) else batch
        is_held = is_held_back(np.arange(place, place + len(images)))
        place += len(images)
        if is_held.any():
            held.append(_some(images, is_held))
        if not is_held.all():
            part = _some(images, ~is_held)
            working.append(part if targets is None else (part, _some(targets, ~is_held)))
    return (working, held) if held else (working, read_images(working))


def _some(values: Any, chosen: np.ndarray) -> Any:
    """Return some entries of a tensor, or of a list of targets."""
    if isinstance(values, Tensor):
        return values[torch.from_numpy(chosen).to(values.device)]
    return [value for value, is_chosen in zip(values, chosen, strict=True) if is_chosen]
