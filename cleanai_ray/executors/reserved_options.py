"""The options of a job's own process: what it reserves, besides what its trials take."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Annotated, Any, get_type_hints

import typer

RESERVED: dict[str, Any] = {
    name: Annotated[float, typer.Option(min=0, help=f"{what} that the job's own process reserves{unit}.")]
    for name, what, unit in (("cpus", "CPUs", ""), ("gpus", "GPUs", ""), ("memory", "Memory", ", in GB"))
}


def reserving(command: Callable[..., int]) -> Callable[..., int]:
    """Give a command the options --cpus, --gpus and --memory; its argument `reserved` gets all three."""
    hints = get_type_hints(command, include_extras=True)
    del hints["reserved"]
    parameters = inspect.signature(command).parameters
    own = [parameters[name].replace(annotation=hints[name]) for name in parameters if name != "reserved"]
    added = [
        inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD, default=0.0, annotation=option)
        for name, option in RESERVED.items()
    ]

    def called(**values: Any) -> int:
        reserved = {name: values.pop(name) for name in RESERVED}
        return command(**values, reserved=reserved)

    called.__name__, called.__doc__ = command.__name__, command.__doc__
    called.__annotations__ = {**hints, **RESERVED}
    called.__signature__ = inspect.Signature([*own, *added])  # type: ignore[attr-defined]
    return called
