"""A limit on the images that a process computes at a time; it falls by half whenever memory runs out."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from torch import Tensor

from cleanai_ray.nn.faults import is_out_of_memory, release_memory
from cleanai_ray.nn.notices import notice

_Found = TypeVar("_Found")


class BatchLimit:
    """The limit of one process.

    Work that reads its batches through `split` can be run by `within_memory`, which runs it again with batches of half
    the size when memory runs out. Sums over samples stay what they are; only magnitudes of a batch's gradient and
    batch-norm statistics within a batch are then those of smaller batches.

    Attributes:
        size: Most samples of a batch; None for no limit.
    """

    def __init__(self) -> None:
        self.size: int | None = None
        self._largest = 0
        self._has_split = False

    def split(self, batches: Iterable[tuple[Any, Any]]) -> Iterator[tuple[Any, Any]]:
        """Yield pairs (inputs, targets) of at most `size` samples, in the same order."""
        for inputs, targets in batches:
            for piece in self.pieces(inputs, targets):
                self._largest = max(self._largest, len(piece[0]))
                yield piece

    def pieces(self, inputs: Any, targets: Any) -> list[tuple[Any, Any]]:
        """Return one batch in pieces of at most `size` samples."""
        number = len(inputs)
        if self.size is None or number <= self.size:
            return [(inputs, targets)]
        self._has_split = True
        return split_batch(inputs, targets, -(-number // self.size))

    def within_memory(self, work: Callable[[], _Found], what: str) -> _Found:
        """Return the result of work that reads its batches through `split`; run it again if memory runs out.

        The limit stays for later work of this process. Work that ran under it gives a notice.

        Args:
            work: Called again from its beginning, so it must leave nothing half done.
            what: What runs, for the notice.

        Raises:
            Exception: The error of the work; one of memory if a single sample is too much, or no batch was read.
        """
        outer = self._largest, self._has_split
        try:
            return self._within_memory(work, what)
        finally:
            self._largest, self._has_split = max(self._largest, outer[0]), self._has_split or outer[1]

    def _within_memory(self, work: Callable[[], _Found], what: str) -> _Found:
        self._largest, self._has_split = 0, False
        while True:
            try:
                found = work()
                break
            except Exception as error:
                largest = self._largest if self.size is None else min(self._largest, self.size)
                if not is_out_of_memory(error) or largest <= 1:
                    raise
            # Here the error is gone, and with it the frames that held the tensors.
            self.size, self._largest = largest // 2, 0
            release_memory()
        if self._has_split:
            notice(
                f"memory ran out with larger batches: {what} ran on at most {self.size} samples at a time, on which "
                "only the gradients of taylor and the recalibration of batch-norm depend"
            )
        return found


process_limit = BatchLimit()
"""The limit of this process."""


def split_batch(inputs: Any, targets: Any, number: int) -> list[tuple[Any, Any]]:
    """Return a batch in a number of pieces, whose sizes differ by one sample at most.

    Args:
        inputs: A tensor [N, ...], or a list of N.
        targets: Likewise, or a dict of such; None where there are none.
        number: At most N.
    """
    ends = [len(inputs) * place // number for place in range(number + 1)]
    spans = [slice(start, end) for start, end in itertools.pairwise(ends)]
    return [(_part(inputs, span), _part(targets, span)) for span in spans]


def _part(value: Any, span: slice) -> Any:
    if isinstance(value, dict):
        return {key: _part(item, span) for key, item in value.items()}
    return value[span] if isinstance(value, (Tensor, list, tuple)) else value
