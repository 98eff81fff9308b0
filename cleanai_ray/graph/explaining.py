"""Errors of passes and of tracing in one line, with the layer or operation that raised them."""

from __future__ import annotations

from collections.abc import Iterator
from types import TracebackType
from typing import Any

import torch
import torch_pruning as tp
from torch import nn


def explain(error: BaseException, model: nn.Module) -> str:
    """Return an error's message in one line, with the layer or operation that raised it."""
    names = {module: name for name, module in model.named_modules()}
    place = ""
    step = error.__traceback__
    while step is not None:
        nodes = _nodes_of(step)
        if nodes:  # Arguments come first.
            place = f"at {_describe(nodes[0], names)}: "
        owner = step.tb_frame.f_locals.get("self")
        if isinstance(owner, nn.Module) and names.get(owner):
            place = f"in layer '{names[owner]}' ({type(owner).__name__}): "
        step = step.tb_next
    return f"{place}{' '.join(str(error).split()) or type(error).__name__}"


def _nodes_of(step: TracebackType) -> list[Any]:
    return [value for value in step.tb_frame.f_locals.values() if isinstance(value, tp.dependency.Node)]


def module_of(error: BaseException, model: nn.Module) -> str:
    """Return the name of the innermost module of a model in which an error was raised; empty if it was in none."""
    names, found = {module: name for name, module in model.named_modules()}, ""
    step = error.__traceback__
    while step is not None:
        owner = step.tb_frame.f_locals.get("self")
        found = names.get(owner, found) if isinstance(owner, nn.Module) else found
        step = step.tb_next
    return found


class DoesNotRunError(Exception):
    """An error of a model on its inputs, in one line with the layer."""


def require_running(model: nn.Module, inputs: Any) -> None:
    """Run a model in evaluation mode, in which it is left.

    Raises:
        DoesNotRunError: When it raises an error.
    """
    error = running_error(model, inputs)
    if error is not None:
        raise DoesNotRunError(explain(error, model)) from error


def running_error(model: nn.Module, inputs: Any) -> Exception | None:
    """Return the error that a model raises on inputs in evaluation mode, in which it is left, or None."""
    try:
        with torch.no_grad():
            model.eval()(inputs)
    except Exception as error:
        return error
    return None


def nodes_in(error: BaseException) -> Iterator[Any]:
    """Yield the nodes of a graph that functions worked on when an error was raised, those of the outermost first."""
    step = error.__traceback__
    while step is not None:
        yield from _nodes_of(step)
        step = step.tb_next


def _describe(node: Any, names: dict[nn.Module, str]) -> str:
    """Return the name of an operation, and the layers whose outputs it reads."""
    if node.module in names:
        return f"layer '{names[node.module]}'"
    seen, waiting, layers = {node}, [node], []
    while waiting:
        for before in waiting.pop().inputs:
            if before.module in names:
                layers.append(f"'{names[before.module]}'")
            elif before not in seen:
                seen.add(before)
                waiting.append(before)
    behind = f" behind layer {', '.join(sorted(set(layers)))}" if layers else ""
    return f"operation {op_name(node)}{behind}"


def op_name(node: Any) -> str:
    """Return the name of the function of autograd behind an operation."""
    return str(node.grad_fn.name())
