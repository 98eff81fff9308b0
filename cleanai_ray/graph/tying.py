"""Parameters that several layers share, as an output layer that has the weight of the token embeddings.

A cut gives every layer a smaller weight of its own. Where these are the same again, one takes the place of all; where
different channels would go, the cut is refused. Within `tying(False)` every layer has its own after a cut: so it was in
earlier versions, and so it is where nothing could be cut otherwise.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor, nn

from cleanai_ray.errors import PruningError

Shared = list[tuple[str, ...]]
"""The names of each parameter that several layers share."""

_TIES: ContextVar[bool] = ContextVar("ties", default=True)
"""Whether layers that share a parameter still do after a cut."""


class UntiedError(PruningError):
    """Two layers that share a parameter would lose different channels of it.

    Args:
        one: Name of the parameter in a layer.
        other: Its name in the other one.
    """

    def __init__(self, one: str, other: str) -> None:
        super().__init__(one, other)
        self.layers = tuple(name.rpartition(".")[0] or name for name in (one, other))

    def __str__(self) -> str:
        one, other = self.layers
        return (
            f"layers '{one}' and '{other}' share a weight and would lose different channels of it; "
            "allowed: the same channels of both"
        )

    @property
    def reason(self) -> str:
        """Why a group keeps its width, in words that follow its name."""
        one, other = self.layers
        return (
            f"it shares a weight with another layer ('{one}' and '{other}'), which would differ; "
            "with a copy of the weight for each, both are cut"
        )


@contextmanager
def tying(ties: bool) -> Iterator[None]:
    """Let cuts leave layers that share a parameter one of their own each, unless they tie, here and around this."""
    token = _TIES.set(ties and _TIES.get())
    try:
        yield
    finally:
        _TIES.reset(token)


def cuts_tie() -> bool:
    """Return whether layers that share a parameter still do after a cut: not within `tying(False)`."""
    return _TIES.get()


def shared_parameters(model: nn.Module) -> Shared:
    """Return the parameters that several layers share; a layer that has several names counts as one."""
    owners: dict[int, list[str]] = {}
    for name, module in model.named_modules():
        for leaf, parameter in module._parameters.items():
            if parameter is not None:
                owners.setdefault(id(parameter), []).append(f"{name}.{leaf}".lstrip("."))
    return [tuple(names) for names in owners.values() if len(names) > 1]


def tie_again(model: nn.Module, shared: Shared) -> None:
    """Let layers of a model share parameters again, after all of them were cut, in place; not within `tying(False)`.

    Args:
        model: The model after the cut.
        shared: The parameters that were shared before.

    Raises:
        UntiedError: When the layers have different parameters now.
    """
    for first, *others in shared if _TIES.get() else ():
        parameter = model.get_parameter(first)
        for name in others:
            other = model.get_parameter(name)
            if other is not parameter:
                if not _is_same(parameter, other):
                    raise UntiedError(first, name)
                _set_parameter(model, name, parameter)


def untie(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Give layers that share a parameter one of their own where a state has another value for each, in place.

    Raises:
        PruningError: When a state has several values for a tensor of one layer that has several names.
    """
    for first, *others in shared_parameters(model):
        shared = model.get_parameter(first)
        for name in others:
            if not _agree(state, first, name):
                own = nn.Parameter(shared.detach().clone(), requires_grad=shared.requires_grad)
                _set_parameter(model, name, own)
    names: dict[int, str] = {}
    for name, value in model.state_dict(keep_vars=True).items():
        first = names.setdefault(id(value), name)
        if not _agree(state, first, name):
            raise PruningError(f"they differ in '{first}' and '{name}', which are one tensor of the model")


def _agree(state: Mapping[str, Tensor], one: str, other: str) -> bool:
    return one == other or one not in state or other not in state or _is_same(state[one], state[other])


def _set_parameter(model: nn.Module, name: str, parameter: nn.Parameter) -> None:
    owner, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(owner), leaf, parameter)


def _is_same(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and bool(torch.equal(torch.nan_to_num(one), torch.nan_to_num(other)))
