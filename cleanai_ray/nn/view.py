"""Views of a model: the same modules and weights under the same names, with another forward pass."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, TypeVar

from torch import Tensor, nn

from cleanai_ray.nn.copying import copied

M = TypeVar("M", bound=nn.Module)
Forward = Callable[[Any, Tensor], Any]
"""(module, inputs) -> outputs; within it, `own_forward(module)` is the model's own forward pass."""


def as_network(model: nn.Module, forward: Forward) -> nn.Module:
    """Return a module that shares all modules and parameters of a model, and runs another forward pass.

    A deep copy of it is a deep copy of the model, with the other forward pass. It can be pickled if both can be.
    """
    view = copy.copy(model)
    view.__class__ = _view_class(type(model), forward)  # type: ignore[arg-type]
    return view


def shared_copy(model: M, replaced: Mapping[nn.Module, nn.Module] | None = None) -> M:
    """Return a copy of a model and its modules that shares all parameters and buffers.

    Args:
        model: The model.
        replaced: Other modules in place of some of its own.
    """
    modules = dict(replaced or {})
    sources: list[nn.Module] = [model, *modules.values()]
    tensors = [tensor for source in sources for tensor in (*source.parameters(), *source.buffers())]
    memo: dict[int, Any] = {id(tensor): tensor for tensor in tensors}
    for module, other in modules.items():
        memo[id(module)] = copied(other, memo)
    return copied(model, memo)


def as_model(network: nn.Module) -> nn.Module:
    """Return the model that a view of `as_network` shows, with its own forward pass, or the module itself."""
    own = getattr(type(network), "_viewed_class", None)
    if own is None:
        return network
    model: nn.Module = own.__new__(own)
    model.__dict__.update(vars(network))
    return model


def own_forward(network: Any) -> Callable[..., Any]:
    """Return the model's own forward pass, of a view or of the model itself."""
    own = getattr(type(network), "_viewed_class", type(network))
    return lambda *args: own.forward(network, *args)


@lru_cache(maxsize=64)
def _view_class(own: type[nn.Module], forward: Forward) -> type[nn.Module]:
    def run(self: nn.Module, inputs: Tensor) -> Any:
        return forward(self, inputs)

    def reduced(self: nn.Module, protocol: Any) -> tuple[Any, ...]:
        return as_network, (as_model(self), forward)

    # It has the name of the model's class, by which plans identify architectures.
    names = {"__qualname__": own.__qualname__, "__module__": own.__module__, "__doc__": own.__doc__}
    own_parts = {"forward": run, "__reduce_ex__": reduced, "_viewed_class": own}
    return type(own.__name__, (own,), {**names, **own_parts})
