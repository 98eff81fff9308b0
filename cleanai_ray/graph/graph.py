"""Dependency groups: which channels of which layers must be removed together, by torch-pruning."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
import torch_pruning as tp
from torch import Tensor, nn

from cleanai_ray.errors import PruningError
from cleanai_ray.graph.attention import notes_on_attention
from cleanai_ray.graph.checking import CutCheck
from cleanai_ray.graph.cutting import Cuts, cut, cuts_of
from cleanai_ray.graph.explaining import DoesNotRunError, require_running
from cleanai_ray.graph.finding import every_group
from cleanai_ray.graph.group import ChannelGroup, Member, without
from cleanai_ray.graph.heads import HeadAxis, head_axes, width_of
from cleanai_ray.graph.prunable import Prunable, Search
from cleanai_ray.graph.readiness import require_parameters, told_together
from cleanai_ray.graph.scores import scores_of
from cleanai_ray.graph.tracing import modules_named, single_input, trace
from cleanai_ray.graph.trials import Trials, failing_alone
from cleanai_ray.graph.tying import tying
from cleanai_ray.graph.undoing import restored_on_error
from cleanai_ray.nn.copying import copied
from cleanai_ray.nn.open_attention import open_attention

__all__ = ["ChannelGraph", "ChannelGroup", "Member"]


class ChannelGraph:
    """The dependency graph of a copy of a model, and that copy, which `remove` makes smaller step by step.

    In the copy, attention is in separate layers (see `open_attention`), so that dense and pruned models have the same
    layers whatever is removed.

    Args:
        model: The model; it is copied, and left as it is.
        example_inputs: One input batch, or a tuple that holds just it.
        ignored_layers: Module names that keep their output width, with all below them. Of attention, `heads`, `query`
            (with the keys) and `value` can be named one by one; a packed `qkv` stands for the layers that replace it.
        check: Whether to try each group on a copy, and to compare the model after each cut with what it computed before
            when the removed channels were silent. A group that fails keeps its width; a cut that fails is an error.
        only: Names of the groups that are needed; others are not tried, and left out.
        like: A graph of the same model, whatever its weights are, whose groups are taken over without a trial.

    Attributes:
        notes: Sentences about what cannot be narrowed.
        ties: Whether layers that share a parameter still do after a cut.

    Raises:
        PruningError: When the model cannot be traced, takes several inputs, or an ignored layer does not exist.
    """

    def __init__(
        self,
        model: nn.Module,
        example_inputs: Any,
        ignored_layers: Sequence[str] = (),
        *,
        check: bool = True,
        only: Collection[str] | None = None,
        like: ChannelGraph | None = None,
    ) -> None:
        require_parameters(model)
        self.model = copied(open_attention(model))
        self.example_inputs = single_input(example_inputs)
        self._ignored_layers, self._check = tuple(ignored_layers), check
        self._removals: list[dict[str, np.ndarray]] = []
        self._ignored = modules_named(self.model, ignored_layers)
        for parameter in self.model.parameters():
            parameter.requires_grad_(True)
        self._graph = trace(self.model, self.example_inputs)
        self._names = {module: name for name, module in self.model.named_modules()}
        self._free = {name: self._graph.module2node.get(each) for each, name in self._graph._param_to_name.items()}
        axes = head_axes(self._graph.attention, self._names)
        self._kept: dict[tuple[str, str], np.ndarray] = {}
        self._prunable: Prunable
        self._prunable = found = self._search(axes, only) if like is None else like._prunable
        self.ties = found.ties
        self._axes = {axis.name: axis for axis in axes if axis.name not in found.whole}
        self._followed, self._unfit = list(found.groups), set[str]()
        self.notes = (*notes_on_attention(self.model, self._graph.attention), *found.notes)
        self.groups = self._listed_groups()
        self.kept_channels = {group.name: np.arange(group.num_channels) for group in self.groups}

    def _search(self, axes: Sequence[HeadAxis], only: Collection[str] | None) -> Prunable:
        search = Search(self.model, self._graph, self._names, self._ignored, only, axes)
        return search.tried(self.example_inputs, self._dimensions) if self._check else search.untried()

    def every_group(self) -> list[ChannelGroup]:
        """Return all groups of the model at full width, ignored ones and such as failed a trial among them."""
        return every_group(self._graph, self._names)

    def _listed_groups(self) -> tuple[ChannelGroup, ...]:
        followed = (group for group in self._followed if group.name not in self._unfit)
        return (*followed, *self._groups_in_attention())

    def _groups_in_attention(self) -> Iterator[ChannelGroup]:
        ignored = {self._names[module] for module in self._ignored}
        for axis in self._axes.values():
            group = axis.group()
            if not any(member.layer in ignored for member in group.members if member.side != "in"):
                yield group

    @property
    def _dimensions(self) -> dict[str, int]:
        """The dimension in which each free parameter is cut, by name."""
        return {name: node.pruning_dim for name, node in self._free.items() if node is not None}

    def _full_group(self, group: ChannelGroup) -> Any:
        """Return a group as torch-pruning has it, with all channels."""
        whole = tp.dependency.Group()
        whole._DG = self._graph
        for member in group.members:
            node = self._node(member.layer)
            if node is None or (group.name in self._axes and not isinstance(node.module, nn.Linear)):
                continue
            pruner = self._graph.get_pruner_of_module(node.module)
            handler = pruner.prune_in_channels if member.side == "in" else pruner.prune_out_channels
            dep = tp.dependency.Dependency(handler, handler, source=node, target=node)
            whole.add_dep(dep, member.channels.tolist())
            whole[-1].root_idxs = member.roots.tolist()
        return whole

    def _node(self, layer: str) -> Any:
        if layer in self._free:
            return self._free[layer]
        return self._graph.module2node.get(self.model.get_submodule(layer))

    def torch_pruning_scores(self, group: ChannelGroup, importance: str, **options: Any) -> Tensor:
        """Score the channels of a group by one of torch-pruning's importance classes.

        Args:
            group: A group of this graph, at its present width.
            importance: Class name in `torch_pruning.importance`.
            **options: Arguments of the class.

        Returns:
            Scores of shape [num_channels], float64, as torch-pruning normalises them.

        Raises:
            PruningError: When torch-pruning has no score for the group.
        """
        return scores_of(self._full_group(group), group, importance, options)

    def set_gradients(self, gradients: Mapping[str, Tensor], num_samples: int) -> None:
        """Give the parameters mean gradients, for scores that read them; `remove` cuts them with the parameters."""
        for name, parameter in self.model.named_parameters():
            found = gradients.get(name)
            parameter.grad = torch.zeros_like(parameter) if found is None else (found / num_samples).to(parameter)

    def remove(self, removed: Mapping[str, Sequence[int] | np.ndarray]) -> None:
        """Cut channels, in present numbering, out of the model. After an error, all is as it was before.

        Args:
            removed: The channels to remove, by group name.

        Raises:
            PruningError: When a group does not exist, the smaller model no longer runs, or it computes something else
                than the model does with the removed channels silenced.
        """
        known = {group.name: group for group in self.groups}
        for name in removed:
            if name not in known:
                raise PruningError(f"the plan names group '{name}', which the model does not have")
        gone = {name: np.unique(np.asarray(channels, dtype=np.int64)) for name, channels in removed.items()}
        gone = {name: known[name].whole_units(channels) for name, channels in gone.items() if len(channels)}
        try:
            with tying(self.ties), restored_on_error(self, *self.model.modules()):
                self._cut(gone, [known[name] for name in gone])
                self._removals.append({name: np.array(each, dtype=np.int64) for name, each in removed.items()})
        except DoesNotRunError as error:
            raise PruningError(f"the pruned model does not run: {error}; {self._advice(gone)}") from error
        finally:
            for name in self._free:
                self._renew(name)

    def _cut(self, gone: Mapping[str, np.ndarray], groups: Sequence[ChannelGroup]) -> None:
        cuts = self._cuts(gone)
        check = CutCheck.before(self.model, self.example_inputs, cuts, self._dimensions) if self._check else None
        self._track(cuts)
        cut(self.model, {key: each for key, each in cuts.items() if self._holds_weights(key[0])}, self._dimensions)
        for name, channels in gone.items():
            self.kept_channels[name] = np.delete(self.kept_channels[name], channels)
            if name in self._axes:
                self._axes[name].narrow(channels)
        nothing = np.empty(0, dtype=np.int64)
        self._followed = [without(group, gone.get(group.name, nothing), cuts) for group in self._followed]
        self.groups = self._listed_groups()
        require_running(self.model, self.example_inputs)
        if check is not None:
            check.require_same(self.model, groups)

    def try_to_remove(self, removed: Mapping[str, Sequence[int] | np.ndarray]) -> list[str]:
        """Cut channels out of the model, or let the groups keep their width for which that is wrong.

        Args:
            removed: The channels to remove, by group name.

        Returns:
            Nothing if the channels are gone. Otherwise all is as it was, but for groups that are no longer among
            `groups`, and sentences about them, which `notes` has as well.

        Raises:
            PruningError: As `remove`, when the fault is not that of a group.
        """
        try:
            self.remove(removed)
        except PruningError:
            groups = [group for group in self._followed if len(removed.get(group.name, ()))]
            chosen = {group.name: group.whole_units(np.asarray(removed[group.name])) for group in groups}
            with tying(self.ties):
                _, reasons = Trials(self.model, self.example_inputs, self._dimensions, chosen).sort_out(groups)
            if not reasons:
                raise
            self._unfit |= reasons.keys()
            told = told_together(reasons)
            self.notes, self.groups = (*self.notes, *told), self._listed_groups()
            return told
        return []

    def _cuts(self, gone: Mapping[str, np.ndarray]) -> Cuts:
        """Return what goes from each layer, parts of attention without weights included."""
        cuts = cuts_of(self._followed, gone)
        for name, channels in gone.items():
            for part in self._axes[name].cuts(channels) if name in self._axes else ():
                known = cuts.get((part.layer, part.side), np.empty(0, dtype=np.int64))
                cuts[part.layer, part.side] = np.union1d(known, part.channels)
        return cuts

    def _holds_weights(self, layer: str) -> bool:
        return layer in self._free or width_of(self.model.get_submodule(layer), "out") is None

    def _renew(self, name: str) -> None:
        """Make torch-pruning's graph refer to a free parameter again after it was cut."""
        node = self._free[name]
        if node is not None:
            node.module = self.model.get_parameter(name)

    def rebuild(self, dense: nn.Module) -> ChannelGraph:
        """Return an independent graph of the dense model with the same channels removed, in the same steps.

        Its model has the dense weights and no gradients. A graph cannot be copied: it refers to the modules of its own
        model and to autograd's records of them.

        Args:
            dense: The model that this graph was made from; it is left as it is.
        """
        other = ChannelGraph(dense, self.example_inputs, self._ignored_layers, check=self._check, like=self)
        for removed in self._removals:
            other.remove(removed)
        other._unfit, other.notes = set(self._unfit), self.notes
        other.groups = other._listed_groups()
        return other

    def _track(self, cuts: Cuts) -> None:
        for (layer, side), channels in cuts.items():
            if layer in self._free:
                continue
            for dimension in ("out", "in") if side == "both" else (side,):
                key = (layer, dimension)
                if key not in self._kept:
                    self._kept[key] = np.arange(self.width(layer, dimension))
                self._kept[key] = np.delete(self._kept[key], channels)

    def _advice(self, gone: Mapping[str, np.ndarray]) -> str:
        followed = [group for group in self._followed if group.name in gone and self._check]
        with tying(self.ties):
            alone = failing_alone(self.model, self.example_inputs, followed, gone, self._dimensions)
        if alone:
            return f"name {' and '.join(map(repr, alone))} in ignored_layers"
        return "if its code relies on the width of a layer, name that layer in ignored_layers"

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """Parameters outside the layers that torch-pruning knows (a class token, a position embedding), by name."""
        return {name: self.model.get_parameter(name) for name in self._free}

    def width(self, layer: str, dimension: Literal["out", "in"]) -> int:
        """Return the present width of a layer's (or free parameter's) dimension."""
        if layer not in self._free:
            width = width_of(self.model.get_submodule(layer), dimension)
            if width is not None:
                return width
        node = self._node(layer)
        return self._graph.get_out_channels(node) if dimension == "out" else self._graph.get_in_channels(node)

    def kept(self, dimension: Literal["out", "in"]) -> dict[str, np.ndarray]:
        """Return the dense indices of the channels that each narrowed layer kept in a dimension."""
        return {layer: kept for (layer, side), kept in self._kept.items() if side == dimension}
