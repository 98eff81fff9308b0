"""A model's computation as a torch.fx graph of torch's own layers and functions.

The graph is recorded while the model computes on an example, so that a branch which depends on a shape can be decided.
A branch that depends on the size of the batch would be decided for the example's alone: whoever uses the graph compares
it with the model on batches of other sizes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn

_IDENTITIES = {"StochasticDepth", "DropPath"}
"""Classes outside torch that change nothing in evaluation mode, by name."""

_VALUE = "value"


def record(model: nn.Module, example_input: Tensor) -> fx.GraphModule:
    """Return a model's computation on one input, called `images`, with the state that it reads.

    Args:
        model: The model, in evaluation mode. Its class is replaced by a subclass of it.
        example_input: Images [N, ...].

    Raises:
        Exception: Whatever the model raises that cannot be recorded, for instance a TraceError of torch.fx.
    """

    def one_input(self: Any, images: Tensor) -> Any:
        return self.forward(images)

    model.__class__ = type(type(model).__name__, (type(model),), {_Recorder.traced_name: one_input})
    recorder = _Recorder(example_input)
    with torch.no_grad():
        graph = recorder.trace(model)
    for node in list(graph.nodes):
        node.type = None  # an annotation, which may name what is not imported elsewhere
        if node.op == "call_module" and type(model.get_submodule(node.target)).__name__ in _IDENTITIES:
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)
        elif node.target is torch._assert:  # Its message would name what stood for the values.
            graph.erase_node(node)
    whole = fx.GraphModule(model, graph)
    whole.graph.eliminate_dead_code()  # which asks the module that a graph belongs to
    return fx.GraphModule(whole, whole.graph)  # without the state that nothing reads


class _Recorder(fx.Tracer):
    """Records each operation together with what it returns for the example.

    Args:
        example: The example input.
    """

    traced_name = "_one_input_of_cleanai"

    def __init__(self, example: Tensor) -> None:
        super().__init__()
        self.traced_func_name = self.traced_name
        self._example = example
        self._computes = False

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Return whether a module is recorded as one operation: a layer of torch without layers inside."""
        is_layer = type(m).__module__.startswith("torch.nn.modules") and not any(True for _ in m.children())
        return is_layer or type(m).__name__ in _IDENTITIES

    def create_proxy(self, kind: str, target: Any, args: Any, kwargs: Any, *more: Any, **named: Any) -> fx.Proxy:
        """Record an operation, and compute it."""
        proxy = super().create_proxy(kind, target, args, kwargs, *more, **named)
        if kind != "output":
            with self._computing():
                proxy.node.meta[_VALUE] = self._compute(kind, target, *_values((args, kwargs)))
        return proxy

    def to_bool(self, obj: fx.Proxy) -> bool:
        """Return what a condition is for the example; one on the values of tensors is refused."""
        value = obj.node.meta[_VALUE]
        if isinstance(value, Tensor):
            raise fx.proxy.TraceError("a branch depends on the values of a tensor")
        return bool(value)

    def iter(self, obj: fx.Proxy) -> Iterator[Any]:
        """Return the parts of a value, as many as the example's has."""
        parts: Any = obj  # which records what is taken out of it
        return iter([parts[place] for place in range(len(obj.node.meta[_VALUE]))])

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Record a module, unless it is only being computed."""
        return forward(*args, **kwargs) if self._computes else super().call_module(m, forward, args, kwargs)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        """Record the use of a parameter, unless it is only being computed with."""
        return attr_val if self._computes else super().getattr(attr, attr_val, parameter_proxy_cache)

    @contextmanager
    def _computing(self) -> Iterator[None]:
        before, self._computes = self._computes, True
        try:
            yield
        finally:
            self._computes = before

    def _compute(self, kind: str, target: Any, args: Any, kwargs: Any) -> Any:
        if kind == "placeholder":
            return self._example
        if kind == "get_attr":
            value: Any = self.root
            for name in target.split("."):
                value = getattr(value, name)
            return value
        if kind == "call_module":
            return self.root.get_submodule(target).forward(*args, **kwargs)
        if kind == "call_method":
            return getattr(args[0], target)(*args[1:], **kwargs)
        return target(*args, **kwargs)


def _values(given: Any) -> Any:
    """Return arguments with values in place of what stands for them."""
    if isinstance(given, fx.Proxy):
        return given.node.meta[_VALUE]
    if isinstance(given, fx.Node):
        return given.meta[_VALUE]
    if isinstance(given, slice):
        return slice(_values(given.start), _values(given.stop), _values(given.step))
    if isinstance(given, (tuple, list)):
        parts = [_values(part) for part in given]
        return type(given)(*parts) if hasattr(given, "_fields") else type(given)(parts)
    if isinstance(given, dict):
        return {name: _values(part) for name, part in given.items()}
    return given
