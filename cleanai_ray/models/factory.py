"""User-defined models: `model.factory: package.module:function`."""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from cleanai_ray.errors import ModelError
from cleanai_ray.models.family import check_options, one_line


@contextmanager
def _current_directory_importable() -> Iterator[None]:
    folder = os.getcwd()
    if folder in sys.path or "" in sys.path:
        yield
        return
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        if folder in sys.path:
            sys.path.remove(folder)


def _find(factory: str) -> Callable[..., Any]:
    module_name, _, attribute = factory.partition(":")
    importlib.invalidate_caches()
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        raise ModelError(
            f"model.factory '{factory}': module '{module_name}' cannot be imported: {one_line(error)}"
        ) from error
    function = getattr(module, attribute, None)
    if not callable(function):
        public = [name for name in dir(module) if not name.startswith("_") and callable(getattr(module, name))]
        raise ModelError(
            f"model.factory '{factory}': '{attribute}' is not a function of module '{module_name}'; "
            f"callable there: {', '.join(public) or 'nothing'}"
        )
    return function


def build_from_factory(factory: str, *, num_classes: int, options: dict[str, Any]) -> nn.Module:
    """Import a function and call it for a model.

    The module can be in the current directory. The function gets `num_classes` if it has a parameter of that name, and
    every option as a keyword argument.

    Args:
        factory: `package.module:function`.
        num_classes: Outputs of the classifier.
        options: `model.options` of the study.

    Raises:
        ModelError: When the function cannot be found, does not accept an option, fails, or does not return a module.
    """
    with _current_directory_importable():
        function = _find(factory)
        check_options(function, options, name=f"model.factory '{factory}'", given=("num_classes",))
        parameters = inspect.signature(function).parameters.values()
        takes_classes = any(p.name == "num_classes" or p.kind is p.VAR_KEYWORD for p in parameters)
        arguments = {"num_classes": num_classes} if takes_classes else {}
        try:
            model = function(**arguments, **options)
        except Exception as error:
            raise ModelError(
                f"model.factory '{factory}' failed with {type(error).__name__}: {one_line(error)}"
            ) from error
    if not isinstance(model, nn.Module):
        raise ModelError(f"model.factory '{factory}' returned {type(model).__name__}; allowed: a torch.nn.Module")
    return model.cpu()
