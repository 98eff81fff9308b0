"""The options of a job's own process: what it reserves, besides what its trials take."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Annotated, Any

import typer

RESERVED: dict[str, Any] = {
    name: Annotated[float, typer.Option(min=0, help=f"{what} that the job's own process reserves{unit}.")]
    for name, what, unit in (("cpus", "CPUs", ""), ("gpus", "GPUs", ""), ("memory", "Memory", ", in GB"))
}


def reserving(command: Callable[..., int]) -> Callable[..., int]:
    """Give a command the options --cpus, --gpus and --memory; its argument `reserved` gets all three."""
    # `get_type_hints` makes an option that is None by default one that typer does not know, in Python 3.10.
    signature = inspect.signature(command, eval_str=True)
    own = [parameter for name, parameter in signature.parameters.items() if name != "reserved"]
    added = [
        inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD, default=0.0, annotation=option)
        for name, option in RESERVED.items()
    ]

    def called(**values: Any) -> int:
        reserved = {name: values.pop(name) for name in RESERVED}
        return command(**values, reserved=reserved)

    called.__name__, called.__doc__ = command.__name__, command.__doc__
    called.__annotations__ = {parameter.name: parameter.annotation for parameter in (*own, *added)}
    called.__signature__ = inspect.Signature([*own, *added])  # type: ignore[attr-defined]
    return called
