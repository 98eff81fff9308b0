"""Values that an executor shares with all its workers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any, Generic, TypeVar

Value = TypeVar("Value")


class Shared(ABC, Generic[Value]):
    """A value that every worker can read; only one copy is kept for all of them."""

    @abstractmethod
    def get(self) -> Value:
        """Return the value."""


def values_of(arguments: Iterable[Any]) -> list[Any]:
    """Return arguments, each shared one replaced by its value."""
    return [argument.get() if isinstance(argument, Shared) else argument for argument in arguments]
