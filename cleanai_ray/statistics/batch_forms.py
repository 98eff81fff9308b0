"""The forms in which loaders give batches, as inputs alone or as pairs."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from torch import Tensor

from cleanai_ray.errors import CalibrationError, CleanAIError

INPUT_KEYS = ("pixel_values", "images", "image", "inputs", "input", "input_ids", "x")
TARGET_KEYS = ("labels", "label", "targets", "target", "y")


class Batches:
    """Batches in any of the forms of a loader, read as tensors of inputs or pairs (inputs, targets).

    Args:
        batches: Tensors, lists or tuples of one or two, or dicts with one of INPUT_KEYS and perhaps one of TARGET_KEYS.
    """

    def __init__(self, batches: Iterable[Any]) -> None:
        self._batches: Iterable[Any] = batches._batches if isinstance(batches, Batches) else batches

    def __iter__(self) -> Iterator[Tensor | tuple[Tensor, Any]]:
        return map(in_form, self._batches)

    def __length_hint__(self) -> int:
        """Return the number of batches, if that is known; unlike a length, it does not make an empty one false."""
        number = operator.length_hint(self._batches, -1)
        return number if number >= 0 else NotImplemented

    def again(self) -> Batches:
        """Return batches that can be read again: those of an iterator are read into memory."""
        return Batches([*self]) if isinstance(self._batches, Iterator) else self


def in_form(batch: Any, error: type[CleanAIError] = CalibrationError) -> Tensor | tuple[Tensor, Any]:
    """Return a batch as a tensor of inputs, or as a pair (inputs, targets).

    Targets in a dict with one of TARGET_KEYS and nothing else are taken out of it.

    Args:
        batch: The batch, in any of the forms that `Batches` takes.
        error: The error that tells of another form.

    Raises:
        CalibrationError: When it has another form; or the error given.
    """
    if isinstance(batch, Mapping):
        keys = [next((key for key in known if key in batch), None) for known in (INPUT_KEYS, TARGET_KEYS)]
        if keys[0] is None:
            raise error(
                f"a batch is a dict with the keys {', '.join(map(repr, batch))}; allowed: inputs under one of "
                f"{', '.join(map(repr, INPUT_KEYS))}"
            )
        inputs, rest = batch[keys[0]], [] if keys[1] is None else [batch[keys[1]]]
    elif isinstance(batch, (list, tuple)) and len(batch) in (1, 2):
        inputs, rest = batch[0], list(batch[1:])
    elif isinstance(batch, Tensor):
        return batch
    else:
        number = f" of {len(batch)}" if isinstance(batch, (list, tuple)) else ""
        raise error(
            f"a batch is a {type(batch).__name__}{number}; "
            "allowed: a tensor of inputs, a pair (inputs, targets), or a dict"
        )
    if not isinstance(inputs, Tensor):
        raise error(f"the inputs of a batch are a {type(inputs).__name__}; allowed: one tensor")
    return (inputs, _taken_out(rest[0])) if rest else inputs


def pair_of(batch: Any, error: type[CleanAIError]) -> tuple[Any, Any]:
    """Return a batch as inputs and targets; what a loader gave as a pair may be in the form of any task.

    Raises:
        CleanAIError: The error given, when the batch has another form, or no targets.
    """
    if isinstance(batch, (list, tuple)) and len(batch) == 2 and not isinstance(batch[0], str):
        return batch[0], _taken_out(batch[1])
    found = in_form(batch, error)
    if isinstance(found, Tensor):
        raise error("a batch has no targets; needed: a pair (inputs, targets), or a dict with both")
    return found


def _taken_out(targets: Any) -> Any:
    if isinstance(targets, Mapping) and len(targets) == 1 and next(iter(targets)) in TARGET_KEYS:
        return next(iter(targets.values()))
    return targets
