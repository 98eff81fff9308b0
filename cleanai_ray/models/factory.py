"""User-defined models: `model.factory: package.module:function`."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from torch import nn

from cleanai_ray.errors import ModelError, StudyError
from cleanai_ray.models.family import check_options, one_line
from cleanai_ray.registry import importable_from_here, named_callable


def _find(factory: str) -> Callable[..., Any]:
    try:
        return named_callable(factory, "model.factory")
    except StudyError as error:
        raise ModelError(str(error)) from error


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
    with importable_from_here():
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
