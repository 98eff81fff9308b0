"""Values in Ray's object store."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import ray

from cleanai_ray.executors.shared import Shared


@dataclass(frozen=True)
class ObjectStoreValue(Shared[Any]):
    """A value in the object store, once a cluster; a node that reads it keeps a copy.

    Attributes:
        reference: Its reference. As an argument of a task, the reference stands for the value.
    """

    reference: Any

    def get(self) -> Any:
        """Return the value."""
        return ray.get(self.reference)


def references_of(arguments: Iterable[Any]) -> list[Any]:
    """Return arguments of a task with the reference in place of each shared value."""
    return [argument.reference if isinstance(argument, ObjectStoreValue) else argument for argument in arguments]
