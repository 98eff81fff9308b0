"""One model to prune in one way, as a value: without a study, in this process."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor, nn

from cleanai_ray.config.sections import CalibrationSection, PruningSection
from cleanai_ray.config.study import Trial
from cleanai_ray.display.progress import current
from cleanai_ray.graph.graph import ChannelGraph
from cleanai_ray.pruning.block_removal import left_of, without_blocks
from cleanai_ray.pruning.granularity import Granularity, granularity_for_time
from cleanai_ray.pruning.measurements import Measurements
from cleanai_ray.pruning.plan import BlockPlan
from cleanai_ray.pruning.prune_result import PruneResult
from cleanai_ray.pruning.pruner import Pruner
from cleanai_ray.statistics.gradients import ModelLoss
from cleanai_ray.tasks.base import Task


@dataclass(frozen=True, kw_only=True, eq=False)
class PruningJob:
    """A model, and how to prune it; every value was checked.

    Attributes:
        model: The dense model.
        example_inputs: One input batch, or a tuple that holds just it, on the model's device.
        trial: Method, mode, ratio or budget, steps and seed.
        bounds: Bounds on what may be removed, with all ignored layers.
        task: What the model is for.
        loss: Mean loss of the task's network, for methods that read gradients; None: cross-entropy.
        blocks: Whole blocks that are removed first.
        calibration: How activations are counted where the method reads them: precision, threshold, bins.
    """

    model: nn.Module
    example_inputs: Tensor | tuple[Tensor, ...]
    trial: Trial
    bounds: PruningSection
    task: Task
    loss: ModelLoss | None = None
    blocks: tuple[BlockPlan, ...] = ()
    calibration: CalibrationSection = field(default_factory=CalibrationSection)

    @property
    def network(self) -> nn.Module:
        """The dense model as the network that is pruned, with all its blocks."""
        return self.task.network(self.model)

    @property
    def bare(self) -> nn.Module:
        """The network without the blocks."""
        return without_blocks(self.network, self.blocks)

    @property
    def ignored(self) -> tuple[str, ...]:
        """The layers of the bare network that keep their width."""
        return left_of(self.network, self.bounds.ignored_layers, self.blocks)

    def graph(self) -> ChannelGraph:
        """Return the dependency graph of the bare network."""
        return ChannelGraph(self.bare, self.example_inputs, self.ignored, check=self.bounds.check)

    def granularity_for_time(self, multiple: int | None) -> Granularity:
        """Return the granularity of widths that meet a budget of latency, for the multiple that a target likes."""
        return granularity_for_time(self.bounds, self.trial.quantization, multiple)

    def prune(self, trial: Trial, measured: Measurements) -> PruneResult:
        """Prune as a trial says.

        Args:
            trial: The job's trial, or one with another budget.
            measured: What was measured on the bare network.
        """
        current().begin("pruning")
        pruner = Pruner(
            self.network, self.example_inputs, trial, bounds=self.bounds, measured=measured, blocks=self.blocks
        )
        return pruner.run().of_task(self.task)
