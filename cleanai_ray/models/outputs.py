"""The class scores among the outputs of a model that returns a dict, a tuple or a `ModelOutput`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from cleanai_ray.errors import ModelError
from cleanai_ray.nn.calls import main_output
from cleanai_ray.nn.view import as_network, own_forward

Path = tuple[str | int, ...]
"""The keys, names or places that lead to a tensor."""

_USUAL = "logits"


def with_scores(
    model: nn.Module, outputs: Any, shape: tuple[int, ...], *, output: str | int | None, what: str
) -> nn.Module:
    """Return a model that returns class scores: itself, or a view of it under the same names.

    Args:
        model: The model, in evaluation mode.
        outputs: What it returned for an example.
        shape: Shape of the class scores of the example.
        output: `model.output` of the study; None to find the class scores by their name and shape.
        what: The model in error messages.

    Raises:
        ModelError: When there are no class scores where `output` says, or more than one could be meant.
    """
    if output is None and isinstance(outputs, Tensor):
        return model
    path = _named(outputs, output, what) if output is not None else _found(outputs, shape, what)
    return as_network(model, _Selection(path)) if path else model


def _named(outputs: Any, output: str | int, what: str) -> Path:
    parts = [output] if isinstance(output, int) else output.split(".")
    path: Path = tuple(int(part) if isinstance(part, str) and part.isdecimal() else part for part in parts)
    try:
        found = _follow(outputs, path)
    except LookupError:
        found = None
    if isinstance(found, Tensor):
        return path
    known = ", ".join(f"'{_dotted(place)}'" for place, _ in _tensors(outputs)) or "null, since it returns one tensor"
    raise ModelError(f"model.output is '{output}', and {what} returns {_told(outputs)}; allowed: {known}")


def _found(outputs: Any, shape: tuple[int, ...], what: str) -> Path:
    places = [place for place, tensor in _tensors(outputs) if tuple(tensor.shape) == shape]
    if (_USUAL,) in places:
        return (_USUAL,)
    if len(places) == 1:
        return places[0]
    if places:
        choices = ", ".join(f"'{_dotted(place)}'" for place in places)
        raise ModelError(
            f"{what} returns several outputs of shape {list(shape)}; needed: model.output, one of {choices}"
        )
    raise ModelError(
        f"{what} returns {_told(outputs)}; allowed: one tensor of class scores of shape {list(shape)}, or several "
        "outputs with one of that shape"
    )


def _told(outputs: Any) -> str:
    if isinstance(outputs, Tensor):
        return "one tensor"
    shapes = [f"{_dotted(place)} {list(tensor.shape)}" for place, tensor in _tensors(outputs)]
    return type(outputs).__name__ + (f" ({', '.join(shapes[:6])})" if shapes else "")


def _items(value: Any) -> Iterator[tuple[str | int, Any]]:
    if isinstance(value, Mapping):
        yield from ((key, item) for key, item in value.items() if isinstance(key, (str, int)))
    elif isinstance(value, tuple) and hasattr(value, "_fields"):
        yield from zip(value._fields, value, strict=True)
    elif isinstance(value, (list, tuple)):
        yield from enumerate(value)


def _tensors(value: Any, place: Path = ()) -> Iterator[tuple[Path, Tensor]]:
    """Yield every tensor of an output with the place that it stands at; the output's own place is empty."""
    if isinstance(value, Tensor) and place:
        yield place, value
    for key, item in _items(value):
        yield from _tensors(item, (*place, key))


def _follow(value: Any, path: Path) -> Any:
    """Return what stands at a place.

    Raises:
        LookupError: When there is nothing.
    """
    for part in path:
        items = dict(_items(value))
        if part not in items and isinstance(part, int):  # a place among named outputs
            items = dict(enumerate(items.values()))
        value = items[part]
    return value


def _dotted(place: Path) -> str:
    return ".".join(map(str, place))


@dataclass(frozen=True)
class _Selection:
    """The forward pass of a view that returns what stands at a place, or, in training, what counts instead.

    Views of a model by equal selections have one class, and can be sent to other processes.
    """

    path: Path

    def __call__(self, network: Any, inputs: Tensor) -> Any:
        outputs = own_forward(network)(inputs)
        try:
            return outputs if isinstance(outputs, Tensor) else _follow(outputs, self.path)
        except LookupError:
            return main_output(outputs)
