"""Exceptions of the package, which pass between the processes of Ray and must arrive as they were raised."""

from __future__ import annotations

import importlib
import inspect
import pickle
import re
from pathlib import Path

import pytest

import cleanai_ray
from cleanai_ray.errors import CleanAIError

_ROOT = Path(cleanai_ray.__file__).parent


def _modules() -> list[str]:
    """Return the modules that define errors of ours."""
    found = []
    for file in sorted(_ROOT.rglob("*.py")):
        if re.search(r"^class \w+\((?!Exception)\w*Error\b", file.read_text(encoding="utf-8"), re.MULTILINE):
            found.append(".".join(("cleanai_ray", *file.relative_to(_ROOT).with_suffix("").parts)))
    return found


def _below(kind: type[CleanAIError]) -> list[type[CleanAIError]]:
    return [kind, *(each for child in kind.__subclasses__() for each in _below(child))]


def _example(kind: type[CleanAIError]) -> CleanAIError:
    """Return an error with another word for each argument of its class."""
    if "__init__" not in {name for each in kind.__mro__ for name in vars(each) if issubclass(each, CleanAIError)}:
        return kind("a sentence")
    names = [name for name in inspect.signature(kind).parameters if name not in ("args", "kwargs")]
    return kind(*(f"{name}.of" for name in names))


@pytest.mark.parametrize("module", _modules())
def test_an_error_arrives_as_it_was_raised(module: str) -> None:
    found = importlib.import_module(module)
    errors = [_example(kind) for kind in dict.fromkeys(_below(CleanAIError)) if kind.__module__ == found.__name__]
    assert errors
    for error in errors:
        again = pickle.loads(pickle.dumps(error))
        assert (type(again), str(again), again.args, vars(again)) == (type(error), str(error), error.args, vars(error))
