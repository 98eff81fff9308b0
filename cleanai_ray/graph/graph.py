"""Dependency groups: which channels of which layers must be removed together, by torch-pruning."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
import torch_pruning as tp
from torch import Tensor, nn

from cleanai_ray.errors import PruningError
from cleanai_ray.graph.attention import notes_on_attention
from cleanai_ray.graph.group import ChannelGroup, Member, Side
from cleanai_ray.graph.heads import Cut, head_axes, width_of
from cleanai_ray.graph.tracing import all_groups, explain, modules_named, single_input, trace
from cleanai_ray.nn.open_attention import open_attention

_COUPLED = (tp.ops.OPTYPE.DEPTHWISE_CONV, tp.ops.OPTYPE.MHA)


class ChannelGraph:
    """The dependency graph of a copy of a model, and that copy, which `remove` makes smaller step by step.

    In the copy, attention is in separate layers (see `open_attention`), so that dense and pruned models have the same
    layers whatever is removed.

    Args:
        model: The model; it is copied, and left as it is.
        example_inputs: One input batch, or a tuple that holds just it.
        ignored_layers: Module names that keep their output width, with all below them. Of attention, `heads`, `query`
            (with the keys) and `value` can be named one by one; a packed `qkv` stands for the layers that replace it.

    Attributes:
        notes: Sentences about what cannot be narrowed.

    Raises:
        PruningError: When the model cannot be traced, takes several inputs, or an ignored layer does not exist.
    """

    def __init__(self, model: nn.Module, example_inputs: Any, ignored_layers: Sequence[str] = ()) -> None:
        self.model = copy.deepcopy(open_attention(model))
        self.example_inputs = single_input(example_inputs)
        self._ignored_layers = tuple(ignored_layers)
        self._removals: list[dict[str, np.ndarray]] = []
        self._ignored = modules_named(self.model, ignored_layers)
        for parameter in self.model.parameters():
            parameter.requires_grad_(True)
        self._graph = trace(self.model, self.example_inputs)
        self._names = {module: name for name, module in self.model.named_modules()}
        self.notes = notes_on_attention(self.model, self._graph.attention)
        self._axes = {axis.name: axis for axis in head_axes(self._graph.attention, self._names)}
        self._kept: dict[tuple[str, str], np.ndarray] = {}
        self.groups = tuple(self._find_groups())
        self.kept_channels = {group.name: np.arange(group.num_channels) for group in self.groups}

    def _find_groups(self) -> Iterator[ChannelGroup]:
        for group in all_groups(self._graph, self._ignored):
            if not any(
                self._keeps_width(dep) or self._cuts_blocks_in_part(dep, idxs) or self._is_lost(dep, idxs)
                for dep, idxs in group
            ):
                yield self._describe(group)
        for axis in self._axes.values():
            group = axis.group()
            ignored = {self._names[module] for module in self._ignored}
            if not any(member.layer in ignored for member in group.members if member.side != "in"):
                yield group

    def _keeps_width(self, dependency: Any) -> bool:
        """Return whether a dimension reaches the output or shuffled channels, or belongs to an ignored layer."""
        if dependency.target.type == tp.ops.OPTYPE.OUTPUT:
            return True
        if not self._graph.is_out_channel_pruning_fn(dependency.handler):
            return False
        return not dependency.target.outputs or dependency.target.module in self._ignored

    def _is_lost(self, dependency: Any, channels: Sequence[int]) -> bool:
        """Return whether tracing confused channels: it names some twice, or more than the layer has."""
        if dependency.target.module not in self._names:
            return False
        name = self._names[dependency.target.module]
        width = self.width(name, "in" if self._side(dependency) == "in" else "out")
        return len(set(channels)) != len(channels) or max(channels) >= width

    def _cuts_blocks_in_part(self, dependency: Any, channels: Sequence[int]) -> bool:
        """Return whether a layer with blocks reads the group as one of several inputs, so that blocks would differ."""
        node = dependency.target
        if node.module not in self._names or _num_blocks(node) == 1:
            return False
        side = self._side(dependency)
        return len(channels) != self.width(self._names[node.module], "in" if side == "in" else "out")

    def _describe(self, group: Any) -> ChannelGroup:
        root = group[0]
        members = []
        blocks = [1]
        for item in group.items:
            node = item.dep.target
            if node.type == tp.ops.OPTYPE.PARAMETER:
                name = self._graph._param_to_name[node.module]
            elif node.module in self._names:
                name = self._names[node.module]
                blocks.append(_num_blocks(node))
            else:
                continue
            if any(index is None for index in item.root_idxs):
                raise PruningError(f"the channels of layer '{name}' cannot be mapped to those of its dependency group")
            members.append(
                Member(
                    layer=name,
                    side=self._side(item.dep),
                    type=type(node.module).__name__,
                    channels=np.asarray(item.idxs, dtype=np.int64),
                    roots=np.asarray(item.root_idxs, dtype=np.int64),
                )
            )
        return ChannelGroup(
            name=self._names[root.dep.target.module],
            num_channels=len(root.idxs),
            num_blocks=math.lcm(*blocks),
            members=tuple(members),
        )

    def _side(self, dependency: Any) -> Side:
        is_out = self._graph.is_out_channel_pruning_fn(dependency.handler)
        is_in = self._graph.is_in_channel_pruning_fn(dependency.handler)
        if (is_out and is_in) or dependency.target.type in _COUPLED:
            return "both"
        return "out" if is_out else "in"

    def _full_group(self, group: ChannelGroup) -> Any:
        """Return a group as torch-pruning has it, with all channels."""
        if group.name not in self._axes:
            return self._subgroup(group.name, "out", list(range(group.num_channels)))
        whole = tp.dependency.Group()
        whole._DG = self._graph
        for member in group.members:
            if isinstance(self.model.get_submodule(member.layer), nn.Linear):
                channels = member.channels.tolist()
                whole.add_dep(self._subgroup(member.layer, member.side, channels)[0].dep, channels)
                whole[-1].root_idxs = member.roots.tolist()
        return whole

    def _subgroup(self, name: str, side: Side, channels: list[int]) -> Any:
        layer = self.model.get_submodule(name)
        pruner = self._graph.get_pruner_of_module(layer)
        cut = pruner.prune_in_channels if side == "in" else pruner.prune_out_channels
        return self._graph.get_pruning_group(layer, cut, channels)

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
        if group.num_units == 1:  # Nothing to choose from; torch-pruning cannot index blocks of one input channel.
            return torch.ones(group.num_channels, dtype=torch.float64)
        try:
            scores = getattr(tp.importance, importance)(**options)(self._full_group(group))
        except (IndexError, RuntimeError) as error:
            raise PruningError(
                f"torch-pruning's {importance} cannot score the group of layer '{group.name}': {error}"
            ) from error
        if scores is None:
            raise PruningError(f"torch-pruning's {importance} has no score for the group of layer '{group.name}'")
        return scores[: group.num_channels].detach().double().cpu()

    def set_gradients(self, gradients: Mapping[str, Tensor], num_samples: int) -> None:
        """Give the parameters mean gradients, for scores that read them; `remove` cuts them with the parameters."""
        for name, parameter in self.model.named_parameters():
            gradient = gradients.get(name)
            if gradient is None:
                parameter.grad = torch.zeros_like(parameter)
            else:
                parameter.grad = (gradient / num_samples).to(parameter)

    def remove(self, removed: Mapping[str, Sequence[int] | np.ndarray]) -> None:
        """Cut channels, in present numbering, out of the model.

        Args:
            removed: The channels to remove, by group name.

        Raises:
            PruningError: When a group does not exist, or the smaller model no longer runs.
        """
        known = {group.name: group for group in self.groups}
        for name, channels in removed.items():
            if name not in known:
                raise PruningError(f"the plan names group '{name}', which the model does not have")
            if not len(channels):
                continue
            if name in self._axes:
                self._narrow_attention(name, channels)
            else:
                subgroup = self._subgroup(name, "out", [int(channel) for channel in channels])
                for dep, idxs in subgroup:
                    self._track(dep, idxs)
                subgroup.prune(record_history=False)
            self.kept_channels[name] = np.delete(self.kept_channels[name], np.asarray(channels, dtype=np.int64))
        self._removals.append({name: np.array(channels, dtype=np.int64) for name, channels in removed.items()})
        _finish_surgery(self.model)
        self.groups = tuple(self._find_groups())
        self._check_runs()

    def rebuild(self, dense: nn.Module) -> ChannelGraph:
        """Return an independent graph of the dense model with the same channels removed, in the same steps.

        Its model has the dense weights and no gradients. A graph cannot be copied: it refers to the modules of its own
        model and to autograd's records of them.

        Args:
            dense: The model that this graph was made from; it is left as it is.
        """
        other = ChannelGraph(dense, self.example_inputs, self._ignored_layers)
        for removed in self._removals:
            other.remove(removed)
        return other

    def _narrow_attention(self, name: str, channels: Sequence[int] | np.ndarray) -> None:
        cuts = self._axes[name].cuts(channels)
        for cut in cuts:
            self._track_cut(cut)
        for cut in cuts:
            layer = self.model.get_submodule(cut.layer)
            if isinstance(layer, nn.Linear):
                prune = tp.prune_linear_in_channels if cut.side == "in" else tp.prune_linear_out_channels
                prune(layer, cut.channels.tolist())
        self._axes[name].narrow(channels)

    def _track(self, dep: Any, idxs: Sequence[int]) -> None:
        node = dep.target
        if node.type != tp.ops.OPTYPE.PARAMETER and node.module in self._names:
            channels = np.asarray(idxs, dtype=np.int64)
            self._track_cut(Cut(layer=self._names[node.module], side=self._side(dep), channels=channels))

    def _track_cut(self, cut: Cut) -> None:
        for dimension in ("out", "in") if cut.side == "both" else (cut.side,):
            key = (cut.layer, dimension)
            if key not in self._kept:
                self._kept[key] = np.arange(self.width(cut.layer, dimension))
            self._kept[key] = np.delete(self._kept[key], cut.channels)

    def _check_runs(self) -> None:
        try:
            with torch.no_grad():
                self.model.eval()(self.example_inputs)
        except Exception as error:
            raise PruningError(
                f"the pruned model does not run: {explain(error, self.model)}; "
                "if its code relies on the width of a layer, name that layer in ignored_layers"
            ) from error

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """Parameters outside the layers that torch-pruning knows (a class token, a position embedding), by name."""
        return {name: parameter for parameter, name in self._graph._param_to_name.items()}

    def width(self, layer: str, dimension: Literal["out", "in"]) -> int:
        """Return the present width of a layer's (or free parameter's) dimension."""
        target = self.parameters[layer] if layer in self.parameters else self.model.get_submodule(layer)
        width = width_of(target, dimension)
        if width is not None:
            return width
        node = self._graph.module2node[target]
        return self._graph.get_out_channels(node) if dimension == "out" else self._graph.get_in_channels(node)

    def kept(self, dimension: Literal["out", "in"]) -> dict[str, np.ndarray]:
        """Return the dense indices of the channels that each narrowed layer kept in a dimension."""
        return {layer: kept for (layer, side), kept in self._kept.items() if side == dimension}


def _num_blocks(node: Any) -> int:
    module = node.module
    if isinstance(module, nn.MultiheadAttention):
        return module.num_heads
    if isinstance(module, nn.GroupNorm):
        return module.num_groups
    if node.type == tp.ops.OPTYPE.DEPTHWISE_CONV:
        return 1
    return getattr(module, "groups", 1)


def _finish_surgery(model: nn.Module) -> None:
    """Update attributes that repeat a width."""
    for module in model.modules():
        if type(module).__name__ == "VisionTransformer" and hasattr(module, "conv_proj"):
            module.hidden_dim = module.conv_proj.out_channels  # type: ignore[union-attr]
