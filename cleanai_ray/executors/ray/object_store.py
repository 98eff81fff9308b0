"""Values in Ray's object store."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import ray

from cleanai_ray.executors.shared import Shared


@dataclass(frozen=True)
class ObjectStoreValue(Shared[Any]):
    """A value in the object store, kept once per cluster; a node that reads it keeps a copy.

    Attributes:
        reference: Its reference. A task that gets the reference as an argument receives the value.
    """

    reference: Any

    def get(self) -> Any:
        """Return the value."""
        return ray.get(self.reference)


def references_of(arguments: Iterable[Any]) -> list[Any]:
    """Return arguments for a task, each shared value replaced by its reference."""
    return [argument.reference if isinstance(argument, ObjectStoreValue) else argument for argument in arguments]
