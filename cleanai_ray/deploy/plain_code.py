"""A recorded model as the text of a Python module that imports torch and nothing else."""

from __future__ import annotations

import inspect
import re
import textwrap
import types
from collections.abc import Iterator
from typing import Any

from torch import fx, nn

from cleanai_ray import __version__
from cleanai_ray.deploy import plain_loader
from cleanai_ray.deploy.standalone_files import PROGRAM_FILE, WEIGHTS_FILE

_EQUAL_PARTS = ("kernel_size", "stride", "padding", "dilation", "output_padding")
_PLAIN = (int, float, str, type(None))
_IMPORTED = ("torch", "math", "operator", "_operator")


_PRIVATE = re.compile(r"\btorch\._C\._nn\.(\w+)")


class NotPlainError(Exception):
    """A model has a part that cannot be written as code of torch alone; the message names it."""


_CODE = '''"""{name}, pruned, as plain PyTorch: written by CleanAI-Ray {version}. It needs torch alone.

    from model import load

    model = load()  # in evaluation mode, with the weights of {weights} beside this file
"""

import json
import struct
from pathlib import Path

import torch
from torch import nn
{imports}

class Model(nn.Module):
    """{name}, pruned."""

    def __init__(self):
        super().__init__()
{layers}

    def _add(self, path, value):
        """Add a layer or tensor under a dotted path, which is its name in the weights file."""
        *parents, name = path.split(".")
        place = self
        for parent in parents:
            if not hasattr(place, parent):
                place.add_module(parent, nn.Module())
            place = getattr(place, parent)
        if isinstance(value, (nn.Module, nn.Parameter)):
            setattr(place, name, value)
        else:
            place.register_buffer(name, value)

{forward}

{reader}

def load(weights=Path(__file__).with_name("{weights}")):
    """Return the model with weights, in evaluation mode."""
    with torch.device("meta"):
        model = Model()
    model.load_state_dict(read_weights(weights), strict=True, assign=True)
    return model.eval()
'''

_PROGRAM = '''"""{name}, pruned, as a torch.export program: written by CleanAI-Ray {version}. It needs torch alone.

    from model import load

    model = load()  # what {program} beside this file holds; it computes as in evaluation mode

It is not code of layers, since the network could not be written so: {reason}
"""

from pathlib import Path

import torch


def load(program=Path(__file__).with_name("{program}")):
    """Return the model."""
    return torch.export.load(program).module()
'''


def program_code(name: str, reason: str) -> str:
    """Return the module of a model that is a torch.export program.

    Args:
        name: What to call the model.
        reason: Why it is no plain code, in one line.
    """
    reason = " ".join(re.sub(r"[^\x20-\x7e]|[\\\"]", " ", reason).split())
    return _PROGRAM.format(name=name, version=__version__, program=PROGRAM_FILE, reason=textwrap.fill(reason, 110))


def plain_code(name: str, recorded: fx.GraphModule) -> str:
    """Return the module of a model as plain code.

    Args:
        name: What to call the model.
        recorded: Its computation; see `plain_trace.record`.

    Raises:
        NotPlainError: When a layer's arguments cannot be read off it, or a function is not torch's.
    """
    python = recorded.graph.python_code("self")
    forward = _PRIVATE.sub(_public, python.src.strip("\n"))
    imports = sorted(set(_imports(forward, python.globals)))
    return _CODE.format(
        name=name,
        version=__version__,
        weights=WEIGHTS_FILE,
        imports="".join(f"{line}\n" for line in imports),
        layers="\n".join(f'        self._add("{path}", {value})' for path, value in _state(recorded)),
        forward="\n".join(f"    {line}".rstrip() for line in forward.splitlines()),
        reader=inspect.getsource(plain_loader.read_weights),
    )


def _public(found: re.Match[str]) -> str:
    """Return the public name of a function of torch that torch.fx names by where it is implemented."""
    return f"nn.functional.{found[1]}" if hasattr(nn.functional, found[1]) else found[0]


def _imports(text: str, names: dict[str, Any]) -> Iterator[str]:
    """Yield the imports that code needs besides torch and nn.

    Raises:
        NotPlainError: When a name is that of something outside torch and the standard library's arithmetic.
    """
    for name, value in names.items():
        if name == "torch" or not re.search(rf"(?<![\w.]){re.escape(name)}\b", text):
            continue
        if name in ("inf", "nan"):
            yield f"from math import {name}"
        elif name == "device":
            yield "from torch import device"
        elif isinstance(value, types.ModuleType):
            raise NotPlainError(f"it uses the module {value.__name__}")
        else:
            module = getattr(value, "__module__", "?")
            if module == "builtins":
                continue
            if module.partition(".")[0] not in _IMPORTED:
                raise NotPlainError(f"it calls {module}.{getattr(value, '__name__', name)}")
            yield f"from {module.lstrip('_')} import {value.__name__} as {name}"


def _state(recorded: fx.GraphModule) -> Iterator[tuple[str, str]]:
    """Yield the path and the expression of each layer, parameter and buffer, in the order of their use."""
    layers = dict.fromkeys(node.target for node in recorded.graph.nodes if node.op == "call_module")
    for path in layers:
        yield str(path), constructor(recorded.get_submodule(str(path)))
    parameters = dict(recorded.named_parameters())
    for path, value in recorded.state_dict().items():
        if path.rpartition(".")[0] not in layers:
            empty = f"torch.empty({tuple(value.shape)}, dtype={value.dtype})"
            yield path, f"nn.Parameter({empty})" if path in parameters else empty


def constructor(layer: nn.Module) -> str:
    """Return the expression that makes a layer of torch anew, with arguments that are not defaults.

    Raises:
        NotPlainError: When an argument is not an attribute of the layer, or no plain value.
    """
    kind, words = type(layer), []
    for name, parameter in inspect.signature(kind.__init__).parameters.items():
        if name in ("self", "device", "dtype") or parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        is_needed = parameter.default is parameter.empty
        if not hasattr(layer, name):
            if is_needed:
                raise NotPlainError(f"{kind.__name__} does not tell its argument {name}")
            continue
        value = getattr(layer, name)
        if name == "bias":
            value = value is not None
        if name in _EQUAL_PARTS and isinstance(value, tuple) and len(set(value)) == 1 and len(value) > 1:
            value = value[0]
        if not _is_plain(value):
            raise NotPlainError(f"{kind.__name__}.{name} is a {type(value).__name__}")
        if is_needed:
            words.append(repr(value))
        elif value != parameter.default:
            words.append(f"{name}={value!r}")
    return f"nn.{kind.__name__}({', '.join(words)})"


def _is_plain(value: Any) -> bool:
    return isinstance(value, _PLAIN) or (isinstance(value, tuple) and all(map(_is_plain, value)))
