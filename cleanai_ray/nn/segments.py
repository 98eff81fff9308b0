"""Segments of a model: stretches between two tensors through which all that is computed later passes."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from cleanai_ray.nn.calls import Call, CallLog, Vertex, entering, tensors_in, vertex_of
from cleanai_ray.nn.consumers import is_consumer
from cleanai_ray.nn.modes import evaluation_mode

_NONLINEAR = re.compile(
    r"relu|elu|gelu|silu|mish|glu|tanh|sigmoid|hardswish|softplus|softmax|softsign|clamp|threshold|shrink|attention",
    re.IGNORECASE,
)


@dataclass(frozen=True, kw_only=True)
class Segment:
    """The stretch of a forward pass from the input of one module to the input of the next segment's.

    Attributes:
        name: The module whose input begins the segment; "" if it begins with the model's own input.
        layers: Modules with weights of their own that begin to run within it, in order.
        consumers: Those among them that can be refitted (`is_consumer`).
        norms: The batch-norms with running statistics among them.
        nonlinear: Whether an activation function or attention is computed within it.
    """

    name: str
    layers: tuple[str, ...]
    consumers: tuple[str, ...]
    norms: tuple[str, ...]
    nonlinear: bool


def find_segments(model: nn.Module, images: Tensor) -> tuple[Segment, ...]:
    """Cut a model into segments, in execution order, from the autograd graph of one forward pass.

    A tensor is a cut if every path from the output to the input passes through it. A segment begins at an innermost
    module that runs once, from a cut to a cut; modules with weights that are part of no such module keep the larger
    module around them whole (a residual or transformer block). Together the segments hold every layer. Integer inputs
    (tokens) have no gradient: there, the data enter where a module turns integers into numbers.

    The graph shows only what is differentiable: `Replay` checks the rest.

    Args:
        model: The model; it is left as it was.
        images: A few inputs, [N, ...], on the model's device.
    """
    with evaluation_mode(model), torch.enable_grad(), CallLog(model=model, marks=True) as log:
        inputs = entering(images)
        output = model(inputs)
    entry = vertex_of(inputs)
    cuts = _Cuts(tensors_in(output), log.entries if entry is None else [entry])
    starts = _starts(model, log.calls, cuts)
    if not starts or starts[0].value is not inputs:
        starts.insert(0, log.calls[0])
    return _describe(model, log.calls, starts, cuts)


class _Cuts:
    """The part of an autograd graph between input and output, in topological order, and where it can be cut.

    In topological order from the input, a vertex lies on every path if and only if no edge leads past it.
    """

    def __init__(self, outputs: Sequence[Tensor], entries: Sequence[Vertex]) -> None:
        sinks = [vertex for vertex in map(vertex_of, outputs) if vertex is not None]
        order, reads = depth_first(sinks, set(entries))
        self.vertices = order
        place = {vertex: index for index, vertex in enumerate(order)}
        past = [0] * (len(order) + 1)
        edges = [(place[read], place[vertex]) for vertex in order for read in reads[vertex] if read in place]
        edges += [(-1, place[entry]) for entry in entries if entry in place]
        edges += [(place[sink], len(order)) for sink in sinks if sink in place]
        for first, last in edges:
            past[first + 1] += 1
            past[last] -= 1
        levels = itertools.accumulate(past)
        self._places = {
            vertex: index for (vertex, index), level in zip(place.items(), levels, strict=False) if not level
        }

    def place(self, vertex: Vertex | None) -> int | None:
        """Return the place of a cut in topological order, or None if the vertex is not a cut."""
        return None if vertex is None else self._places.get(vertex)


def depth_first(sinks: Sequence[Vertex], entries: set[Vertex]) -> tuple[list[Vertex], dict[Vertex, list[Vertex]]]:
    """Return the vertices that depend on an entry, inputs before what reads them, and what each vertex reads.

    Args:
        sinks: The vertices of the outputs.
        entries: The vertices at which the data enter.
    """
    reads: dict[Vertex, list[Vertex]] = {}
    depends: set[Vertex] = set()
    order: list[Vertex] = []
    waiting = [(sink, False) for sink in sinks]
    while waiting:
        vertex, finished = waiting.pop()
        if finished:
            if vertex in entries or any(read in depends for read in reads[vertex]):
                depends.add(vertex)
                order.append(vertex)
        elif vertex not in reads:
            inner = (
                [] if vertex in entries else [(node, nr) for node, nr in vertex[0].next_functions if node is not None]
            )
            reads[vertex] = inner
            waiting.append((vertex, True))
            waiting.extend((read, False) for read in inner)
    return order, reads


def _starts(model: nn.Module, calls: Sequence[Call], cuts: _Cuts) -> list[Call]:
    """Return the calls at whose inputs segments begin."""
    ran: dict[str, int] = {}
    for call in calls:
        ran[call.name] = ran.get(call.name, 0) + 1
    possible = {}
    for call in calls:
        first, last = cuts.place(call.source), cuts.place(call.target)
        if call.name and ran[call.name] == 1 and first is not None and last is not None and first < last:
            possible[call.name] = call
    weighted = [name for name in ran if any(True for _ in model.get_submodule(name).parameters(recurse=False))]
    chosen: list[Call] = []
    for name in sorted(possible, key=lambda name: name.count(".")):
        if any(_within(name, call.name) for call in chosen):
            continue
        inner = [other for other in possible if _within(other, name)]
        layers = [layer for layer in weighted if _within(layer, name)]
        covered = all(any(layer == other or _within(layer, other) for other in inner) for layer in layers)
        if not layers or not covered:
            chosen.append(possible[name])
    return sorted(chosen, key=lambda call: call.begin)


def _within(name: str, outer: str) -> bool:
    return name.startswith(f"{outer}.")


def _describe(model: nn.Module, calls: Sequence[Call], starts: Sequence[Call], cuts: _Cuts) -> tuple[Segment, ...]:
    places = [0, *(cuts.place(start.source) or 0 for start in starts[1:]), len(cuts.vertices)]
    ends = [*(start.begin for start in starts[1:]), len(calls) * 2 + 1]
    segments = []
    for index, start in enumerate(starts):
        first = 0 if index == 0 else start.begin
        ran = dict.fromkeys(call.name for call in calls if first <= call.begin < ends[index])
        modules = {name: model.get_submodule(name) for name in ran}
        nodes = cuts.vertices[places[index] + (index > 0) : places[index + 1] + 1]
        segments.append(
            Segment(
                name=start.name,
                layers=tuple(
                    name for name, module in modules.items() if any(True for _ in module.parameters(recurse=False))
                ),
                consumers=tuple(name for name, module in modules.items() if is_consumer(module)),
                norms=tuple(
                    name
                    for name, module in modules.items()
                    if isinstance(module, _BatchNorm) and module.running_mean is not None
                ),
                nonlinear=any(_NONLINEAR.search(node.name()) for node, _ in nodes),
            )
        )
    return tuple(segments)


def merge_segments(segments: Sequence[Segment], dropped: set[str]) -> tuple[Segment, ...]:
    """Return the segments without the beginnings of those dropped: each becomes part of the one before it.

    Args:
        segments: The segments of a model.
        dropped: Names of segments, not the first one's.
    """
    merged: list[Segment] = []
    for segment in segments:
        if segment.name not in dropped or not merged:
            merged.append(segment)
            continue
        last = merged.pop()
        merged.append(
            Segment(
                name=last.name,
                layers=last.layers + segment.layers,
                consumers=last.consumers + segment.consumers,
                norms=last.norms + segment.norms,
                nonlinear=last.nonlinear or segment.nonlinear,
            )
        )
    return tuple(merged)


def group_segments(segments: Sequence[Segment]) -> tuple[range, ...]:
    """Group neighbouring segments into blocks that are worth reconstructing, and return the places of each block's.

    A block holds a layer other than a batch-norm and a non-linearity; whatever follows without either (pooling) belongs
    to it. A segment that holds both already (a residual or transformer block) is a block by itself, and linear layers
    before it belong to the block before. What is left at the end (a classifier) is a block, too.
    """
    blocks: list[list[int]] = []
    current: list[int] = []
    linear = nonlinear = False
    for index, segment in enumerate(segments):
        layers = bool(set(segment.layers) - set(segment.norms))
        whole = layers and segment.nonlinear
        if current and ((linear and nonlinear and segment.layers) or whole):
            if blocks and not (linear and nonlinear):
                blocks[-1] += current
            else:
                blocks.append(current)
            current, linear, nonlinear = [], False, False
        current.append(index)
        linear, nonlinear = linear or layers, nonlinear or segment.nonlinear
    if current:
        blocks.append(current)
    return tuple(range(block[0], block[-1] + 1) for block in blocks)
