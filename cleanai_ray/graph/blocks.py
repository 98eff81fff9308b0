"""Removable branches of a model: sums of a shortcut and a branch, found in the autograd graph of one forward pass.

In a sum u + v, v is a removable branch if

1. both have the shape of the sum, and neither is scaled by it;
2. whatever v computes from the data, it computes from u: every path from v back to the model's input passes through u,
   or through an operand of the sum that u is (branches side by side: x + attention(x) + mlp(x)); and
3. nothing but this sum reads what is computed on the way.

So the shortcut is the identity; where it is a convolution (the first block of a stage), 2 does not hold. No class name
is looked at. Without v the sum is u, to which the mean of v is added for each channel.

A branch is removed in one of two forms, the first that computes the same as the model with v held at a constant, which
is tried on two samples:

- `block`: one module reads u and returns the sum, or a ReLU or the output of a child module of that sum (blocks of
  ResNet, RegNet, MobileNet, EfficientNet and ConvNeXt). A `Shortcut` stands in its place.
- `branch`: the module that returns v (the attention or MLP of a ViT or Swin block, of a decoder) becomes a `BranchMean`
  and those before it become `Skipped`; the model's own code adds the constant.

Limits: a branch whose end no module returns (v is scaled by a free parameter) is found in the first form alone, and
there only if nothing follows the sum. Modules that run twice stay. The mean is one number a channel, the same at every
position.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from cleanai_ray.graph.block import Block, same_as_held
from cleanai_ray.graph.tracing import single_input
from cleanai_ray.nn.calls import Call, CallLog, Vertex, entering, tensors_in, vertex_of
from cleanai_ray.nn.copying import copied
from cleanai_ray.nn.modes import evaluation_mode
from cleanai_ray.nn.open_attention import open_attention
from cleanai_ray.nn.segments import depth_first

_SUM, _RELU = "AddBackward0", "ReluBackward0"
_CHANNELS_FIRST = re.compile("Convolution|BatchNorm|GroupNorm")
_CHANNELS_LAST = re.compile("Addmm|MmBackward|LayerNorm|Linear")


def find_blocks(model: nn.Module, example_inputs: Any) -> tuple[Block, ...]:
    """Return the branches of a model that can be removed, in execution order; of nested ones, the inner as well.

    Attention is looked at in separate layers (`open_attention`), as pruning does.

    Args:
        model: The model; it is left as it is.
        example_inputs: One input batch, or a tuple that holds just it, on the model's device.
    """
    images = single_input(example_inputs)[:2]
    images = images if len(images) == 2 else torch.cat([images, images])
    model = copied(open_attention(model))
    found: dict[str, Block] = {}
    for candidates in _Search(model, images).run():
        block = next((block for block in candidates if same_as_held(model, block, images)), None)
        if block is not None:
            found.setdefault(block.name, block)
    return tuple(found.values())


@dataclass(frozen=True, eq=False)
class _Sum:
    """A sum whose operand `branch` is removable.

    Attributes:
        total: The sum.
        shortcut: The other operand.
        branch: The operand that is computed from it.
        interior: What is computed between the two, the branch included.
    """

    total: Vertex
    shortcut: Vertex
    branch: Vertex
    interior: frozenset[Vertex]


class _Search:
    """The search for removable branches in one forward pass."""

    def __init__(self, model: nn.Module, images: torch.Tensor) -> None:
        self._modules = dict(model.named_modules())
        with evaluation_mode(model), torch.enable_grad(), CallLog(model=model, marks=True) as log:
            inputs = entering(images)
            output = model(inputs)
        entry = vertex_of(inputs)
        self._calls = log.calls
        sinks = [vertex for vertex in map(vertex_of, tensors_in(output)) if vertex is not None]
        self._entries = set(log.entries if entry is None else [entry])
        order, self._reads = depth_first(sinks, self._entries)
        self._live = dict.fromkeys(order)
        self._readers: dict[Vertex, set[Any]] = {vertex: {None} if vertex in sinks else set() for vertex in order}
        for vertex in order:
            for read in self._reads[vertex]:
                if read in self._live:
                    self._readers[read].add(vertex[0])
        self._ran: dict[str, int] = {}
        for call in self._calls:
            self._ran[call.name] = self._ran.get(call.name, 0) + 1

    def run(self) -> Iterator[list[Block]]:
        """Yield, for each removable branch, the ways to remove it, the best first."""
        for vertex in self._live:
            for found in self._sums(vertex):
                yield list(self._blocks(found))

    def _sums(self, total: Vertex) -> Iterator[_Sum]:
        operands = self._operands(total)
        for shortcut, branch in (operands, operands[::-1]) if operands else ():
            interior = self._interior(branch, self._peeled(shortcut))
            nodes = {node for node, _ in interior}
            private = all(self._readers[vertex] <= nodes for vertex in interior - {branch})
            if interior and private and self._readers[branch] == {total[0]}:
                yield _Sum(total, shortcut, branch, frozenset(interior))

    def _operands(self, total: Vertex) -> tuple[Vertex, Vertex] | None:
        """Return the operands of a plain sum of two tensors of its shape that both depend on the data."""
        node, read = total[0], self._reads[total]
        if node.name() != _SUM or len(read) != 2 or getattr(node, "_saved_alpha", 1) != 1:
            return None
        one, two = read
        same = all(each in self._live and _shape(each) == _shape(total) for each in (one, two))
        return (one, two) if same and one != two else None

    def _peeled(self, vertex: Vertex) -> set[Vertex]:
        """Return a vertex, and if it is a sum its operands of the same shape, and theirs."""
        found, waiting = {vertex}, [vertex]
        while waiting:
            total = waiting.pop()
            for operand in self._reads[total] if total[0].name() == _SUM else ():
                if operand in self._live and operand not in found and _shape(operand) == _shape(total):
                    found.add(operand)
                    waiting.append(operand)
        return found

    def _interior(self, branch: Vertex, stops: set[Vertex]) -> set[Vertex]:
        """Return what depends on the data between some vertices and a branch; nothing if it reads others as well."""
        found: set[Vertex] = set()
        waiting = [branch]
        while waiting:
            vertex = waiting.pop()
            if vertex in stops or vertex in found or vertex not in self._live:
                continue
            if vertex in self._entries:
                return set()
            found.add(vertex)
            waiting += self._reads[vertex]
        return found

    def _blocks(self, found: _Sum) -> Iterator[Block]:
        inside = [call for call in self._calls if call.targets and found.interior.issuperset(call.targets)]
        outermost = [call for call in inside if not any(_encloses(other, call) for other in inside)]
        ends = [call for call in outermost if call.targets[0] == found.branch and self._ran[call.name] == 1]
        shape = self._mean_shape(found)
        if shape is None:
            return
        end = ends[0] if ends else None
        whole = self._whole(found)
        if whole is not None and (end is not None or not whole[1]):
            owner, after = whole
            layers = self._weighted([name for name in self._modules if f"{name}.".startswith(f"{owner}.")])
            kept = {name for step in after for name in layers if f"{name}.".startswith(f"{owner}.{step}.")}
            yield Block(
                name=owner,
                form="block",
                end=None if end is None else end.name,
                after=after,
                shape=shape,
                layers=tuple(name for name in layers if name not in kept),
                fold=self._fold(found, shape),
            )
        if end is not None:
            gone = [call.name for call in outermost if call.begin <= end.begin and self._ran[call.name] == 1]
            yield Block(
                name=max(gone, key=self._num_weights),
                form="branch",
                end=end.name,
                skipped=tuple(name for name in gone if name != end.name),
                shape=shape,
                num_outputs=0 if isinstance(end.output, torch.Tensor) else len(end.output),
                layers=self._weighted([name for own in gone for name in self._within(own)]),
            )

    def _within(self, owner: str) -> list[str]:
        return [name for name in self._modules if f"{name}.".startswith(f"{owner}.")]

    def _weighted(self, names: Sequence[str]) -> tuple[str, ...]:
        return tuple(name for name in names if any(True for _ in self._modules[name].parameters(recurse=False)))

    def _num_weights(self, name: str) -> int:
        return sum(parameter.numel() for parameter in self._modules[name].parameters())

    def _whole(self, found: _Sum) -> tuple[str, tuple[str, ...]] | None:
        """Return the innermost module that is the block and nothing else, and what of it follows the sum."""
        fits: list[tuple[int, str, tuple[str, ...]]] = []
        for call in self._calls:
            if call.name and self._ran[call.name] == 1 and call.value is not None and call.source == found.shortcut:
                after = self._after(found.total, call)
                if after is not None:
                    fits.append((call.begin, call.name, after))
        return max(fits)[1:] if fits else None

    def _after(self, total: Vertex, owner: Call) -> tuple[str, ...] | None:
        """Return the children of a module that lead from the sum to its output; None if other things do."""
        if owner.target == total:
            return ()
        for call in self._calls:
            if call.caller is owner and call.source == total and call.target == owner.target:
                return (call.name.removeprefix(f"{owner.name}."),)
        reader = owner.target[0] if owner.target is not None else None
        return ("relu",) if self._readers[total] == {reader} and reader.name() == _RELU else None  # type: ignore[union-attr]

    def _fold(self, found: _Sum, shape: tuple[int, ...]) -> str | None:
        """Return a layer with a bias whose output is the shortcut, or is added to it and read by nothing else."""
        inner = {found.total[0], *(node for node, _ in found.interior)}
        waiting = [found.shortcut] if self._readers[found.shortcut] <= inner else []
        kinds = nn.Linear if len(shape) == 1 else (_ConvNd, _BatchNorm)
        while waiting:
            vertex = waiting.pop(0)
            for call in self._calls:
                module, once = self._modules[call.name], self._ran[call.name] == 1
                if call.target == vertex and once and isinstance(module, kinds) and module.bias is not None:
                    return call.name
            operands = self._reads[vertex] if vertex[0].name() == _SUM else ()
            waiting += [one for one in operands if one in self._live and self._readers[one] == {vertex[0]}]
        return None

    def _mean_shape(self, found: _Sum) -> tuple[int, ...] | None:
        """Return a shape for the branch's mean that broadcasts, or None where its channels are not known.

        The channels are where the nearest operation of a layer before the sum has them: a convolution or batch-norm in
        dimension 1, a matrix product or layer norm in the last one, unless the dimensions are turned behind it.
        """
        size = _shape(found.branch)
        waiting, seen = deque([(found.branch, False)]), {found.branch}
        while waiting:
            vertex, turned = waiting.popleft()
            node = vertex[0]
            first, last = _CHANNELS_FIRST.search(node.name()), _CHANNELS_LAST.search(node.name())
            if first or last:
                axis = 1 if bool(first) != turned and len(size) > 2 else len(size) - 1
                number = _shape(vertex)[1 if first else -1]
                return (number, *[1] * (len(size) - axis - 1)) if size[axis] == number else None
            for read in self._reads[vertex]:
                if read in found.interior and read not in seen:
                    seen.add(read)
                    waiting.append((read, turned != _moves_last_dimension(node)))
        return None


def _encloses(outer: Call, inner: Call) -> bool:
    return outer.begin < inner.begin and inner.end < outer.end


def _moves_last_dimension(node: Any) -> bool:
    """Return whether an operation permutes dimensions so that another one is the last."""
    number = len(node._input_metadata[0].shape)
    if node.name() == "PermuteBackward0":
        return bool(_signed(node._saved_dims[-1]) % number != number - 1)
    if node.name() == "TransposeBackward0":
        return any(_signed(dim) % number == number - 1 for dim in (node._saved_dim0, node._saved_dim1))
    return False


def _signed(dim: int) -> int:
    """Return a dimension that autograd saved as an unsigned number of 64 bits."""
    return dim - 2**64 if dim >= 2**63 else dim


def _shape(vertex: Vertex) -> tuple[int, ...]:
    node, place = vertex
    return tuple(node._input_metadata[place].shape)
