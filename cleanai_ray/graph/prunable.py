"""Which groups of a model can be pruned, after each was tried, and what to say of the others."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import torch_pruning as tp
from torch import Tensor, nn

from cleanai_ray.graph.finding import find_groups
from cleanai_ray.graph.group import ChannelGroup, inseparable
from cleanai_ray.graph.heads import HeadAxis
from cleanai_ray.graph.readiness import parametrized_layers, told_together
from cleanai_ray.graph.trials import Trials
from cleanai_ray.graph.tying import cuts_tie, shared_parameters, tying


@dataclass(frozen=True)
class Prunable:
    """What of a model can be pruned.

    Attributes:
        groups: Groups outside attention.
        whole: Names of the groups of heads that must stay.
        notes: Sentences about what cannot be narrowed, and of what is shared no longer.
        ties: Whether layers that share a parameter still do after a cut.
    """

    groups: tuple[ChannelGroup, ...]
    whole: tuple[str, ...]
    notes: tuple[str, ...]
    ties: bool


@dataclass(frozen=True)
class Search:
    """Searches a model for what can be pruned.

    Args:
        model: The model.
        graph: torch-pruning's graph of it.
        names: Names of its modules.
        ignored: Layers that keep their output width.
        only: Names of the groups that are needed; None: all.
        axes: The heads of its attention.
    """

    model: nn.Module
    graph: tp.DependencyGraph
    names: Mapping[nn.Module, str]
    ignored: Sequence[nn.Module]
    only: Collection[str] | None = None
    axes: Sequence[HeadAxis] = ()

    def untried(self) -> Prunable:
        """Return all groups, without a trial."""
        found, reasons = self._found()
        return Prunable(tuple(found), (), self._told(found, reasons), cuts_tie())

    def tried(self, example_inputs: Tensor, dimensions: Mapping[str, int]) -> Prunable:
        """Return the groups that pass their trial.

        Layers that share a parameter still do after a cut, unless nothing could be cut for that: then each gets a
        parameter of its own. Where groups are named, as by a plan, nothing else is decided than what was there.

        Args:
            example_inputs: The model's inputs.
            dimensions: The dimension in which each free parameter is cut, by name.
        """
        result = self._tried(example_inputs, dimensions)
        shared = shared_parameters(self.model)
        nothing = not result.groups and len(result.whole) == len(self.axes)
        if self.only is None and result.ties and shared and nothing:
            with tying(False):
                apart = self._tried(example_inputs, dimensions)
            if apart.groups or len(apart.whole) < len(self.axes):
                result = replace(apart, notes=(*apart.notes, _told_apart(shared)))
        return result

    def _tried(self, example_inputs: Tensor, dimensions: Mapping[str, int]) -> Prunable:
        found, reasons = self._found()
        trials = Trials(self.model, example_inputs, dimensions)
        whole = {axis.name: fault for axis in self.axes if (fault := trials.fault_of_heads(axis)) is not None}
        found, failed = trials.sort_out(found)
        return Prunable(tuple(found), tuple(whole), self._told(found, reasons | failed | whole), cuts_tie())

    def _found(self) -> tuple[list[ChannelGroup], dict[str, str]]:
        found, reasons = find_groups(self.graph, self.names, self.ignored)
        return [group for group in found if self.only is None or group.name in self.only], reasons

    def _told(self, found: Sequence[ChannelGroup], reasons: Mapping[str, str]) -> tuple[str, ...]:
        return tuple(told_together({**reasons, **inseparable(found), **parametrized_layers(self.model)}))


def _told_apart(shared: Sequence[tuple[str, ...]]) -> str:
    layers = [" and ".join(f"'{name.rpartition('.')[0] or name}'" for name in names) for names in shared]
    return (
        f"{'; '.join(layers)} share a weight, on which every group depends: each gets a copy of its own, "
        "so that both can be cut"
    )
