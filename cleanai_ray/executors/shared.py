"""Values that every worker of an executor reads."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any, Generic, TypeVar

Value = TypeVar("Value")


class Shared(ABC, Generic[Value]):
    """A value that every worker can read, kept once however many read it."""

    @abstractmethod
    def get(self) -> Value:
        """Return the value."""


def values_of(arguments: Iterable[Any]) -> list[Any]:
    """Return arguments with the value in place of each shared one."""
    return [argument.get() if isinstance(argument, Shared) else argument for argument in arguments]
