"""A log of one forward pass: the modules that ran, in order, with the autograd nodes of what they read and returned."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn

from cleanai_ray.nn.modes import HookOwner

Vertex = tuple[Any, int]
"""A tensor of the autograd graph: the node that computed it, and which of the node's outputs it is."""


@dataclass(kw_only=True, eq=False)
class Call:
    """One run of one module.

    Attributes:
        name: Module name; the root's is "".
        caller: The call within which it ran, or None.
        begin: Place of its beginning among all beginnings and ends of the pass.
        end: Place of its end.
        value: Its only input, if that is one tensor and nothing else; None otherwise.
        source: The input's vertex at the beginning, before anything changes it in place; None without a gradient.
        output: Its output.
        target: The output's vertex at the end; None if it is not one tensor, or has no gradient.
        targets: The vertices at the end of all tensors that it returned and that have a gradient.
    """

    name: str
    caller: Call | None
    begin: int
    end: int = -1
    value: Tensor | None = None
    source: Vertex | None = None
    output: Any = None
    target: Vertex | None = None
    targets: tuple[Vertex, ...] = ()


@dataclass(kw_only=True, eq=False)
class CallLog(HookOwner):
    """Logs all calls of a forward pass, as a context manager. With gradients, it marks where the data enter.

    Attributes:
        model: The model.
        marks: Whether to make the pass differentiable in what innermost modules compute from integers (embeddings of
            tokens), which have no gradient themselves.
        calls: The calls, by their beginning.
        entries: Vertices at which integers became numbers.
    """

    model: nn.Module
    marks: bool = False
    calls: list[Call] = field(default_factory=list)
    entries: list[Vertex] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()
        self._open: list[Call] = []
        self._time = 0

    def __enter__(self) -> CallLog:
        for name, module in self.model.named_modules():
            self._handles.append(module.register_forward_pre_hook(self._before(name), with_kwargs=True))
            self._handles.append(module.register_forward_hook(self._after))
        return self

    def _before(self, name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            call = Call(name=name, caller=self._open[-1] if self._open else None, begin=self._tick())
            if len(args) == 1 and isinstance(args[0], Tensor) and not kwargs:
                call.value, call.source = args[0], vertex_of(args[0])
            self._open.append(call)
            self.calls.append(call)

        return hook

    def _after(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        call = self._open.pop()
        tensors = [value for value in args if isinstance(value, Tensor)]
        innermost = self.calls[-1] is call
        marked = self.marks and innermost and tensors and not any(value.is_floating_point() for value in tensors)
        if marked and isinstance(output, Tensor) and output.is_floating_point():
            output = entering(output)
            self.entries.append((output.grad_fn, output.output_nr))
        call.end, call.output = self._tick(), output
        call.target = vertex_of(output) if isinstance(output, Tensor) else None
        call.targets = tuple(vertex for vertex in map(vertex_of, tensors_in(output)) if vertex is not None)
        return output

    def _tick(self) -> int:
        self._time += 1
        return self._time


def entering(value: Tensor) -> Tensor:
    """Return a copy of a tensor that gradients are followed to, and that may be changed in place."""
    return value.detach().requires_grad_(value.is_floating_point()).clone()


def vertex_of(value: Tensor) -> Vertex | None:
    """Return the vertex of a tensor, or None if it has no gradient."""
    return None if value.grad_fn is None else (value.grad_fn, value.output_nr)


def tensors_in(value: Any) -> list[Tensor]:
    """Return the tensors of a module's output, whatever lists, tuples, mappings and data classes hold them."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, Mapping):
        items: Iterable[Any] = value.values()
    elif is_dataclass(value) and not isinstance(value, type):
        items = [getattr(value, each.name) for each in fields(value)]
    else:
        items = value if isinstance(value, (list, tuple)) else ()
    return [tensor for item in items for tensor in tensors_in(item)]


def main_output(value: Any) -> Any:
    """Return the tensor of a model's output that counts: `logits` of a dict, else the first; without any, the output.

    Args:
        value: A tensor, or a tuple, list or dict that may hold None and further tuples, lists and dicts.
    """
    if isinstance(value, Mapping) and isinstance(value.get("logits"), Tensor):
        return value["logits"]
    return next(iter(tensors_in(value)), value)


@torch.no_grad()
def log_calls(model: nn.Module, images: Tensor) -> list[Call]:
    """Return the calls of one forward pass without gradients."""
    with CallLog(model=model) as log:
        model(images)
    return log.calls
