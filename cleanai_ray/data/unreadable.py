"""Samples that a process could not read, up to a limit."""

from __future__ import annotations

from cleanai_ray.errors import DataError, SampleError

_NUM_SHOWN = 3


class UnreadableSamples:
    """Collects the samples that could not be read, until there are too many.

    Args:
        limit: Distinct samples that may be unreadable: `data.skip_unreadable`.
    """

    def __init__(self, limit: int = 0) -> None:
        self.limit = limit
        self._found: dict[str, str] = {}

    def add(self, where: str, reason: str) -> None:
        """Add a sample; adding it again changes nothing.

        Args:
            where: Its path, or its file and row.
            reason: What is wrong with it, as in `SampleError.reason`.

        Raises:
            DataError: When more than `limit` samples are unreadable; with a limit of 0, the sample's own error.
        """
        self._found.setdefault(where, reason)
        if self.limit == 0:
            raise SampleError(reason, where)
        if len(self._found) > self.limit:
            first = ", ".join(f"'{place}'" for place in list(self._found)[:_NUM_SHOWN])
            raise DataError(
                f"data.skip_unreadable is {self.limit}, but {len(self._found)} samples are unreadable, "
                f"{first} among them; '{where}' {reason}"
            )

    @property
    def found(self) -> dict[str, str]:
        """The reason why each unreadable sample cannot be read, by its location, sorted."""
        return dict(sorted(self._found.items()))
