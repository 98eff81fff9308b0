"""The sizes of a block, and whether its layers are refitted in one pass of all images or batch by batch."""

from __future__ import annotations

from dataclasses import dataclass

from cleanai_ray.nn.activation_size import largest_activation
from cleanai_ray.nn.batches import fast_size
from cleanai_ray.repair.images import device_of
from cleanai_ray.repair.track import Track

_LIVE_TENSORS = 4
_FEW_LAYERS = 4
_REUSED_BYTES = 32 * 1024**2
"""Larger tensors get new memory from the operating system each time (glibc), which takes longer than to fill them."""
_BYTES = 4


@dataclass(frozen=True, kw_only=True)
class BlockSizes:
    """The sizes of a track's present block.

    Attributes:
        number: Images.
        activation: Bytes of the largest activation of one image.
        batch: Images that the device runs fastest at once; None: whatever there is.
        memory_limit: Bytes that the block's activations may take.
    """

    number: int
    activation: int
    batch: int | None
    memory_limit: int

    @staticmethod
    def of(track: Track, memory_limit: int) -> BlockSizes:
        """Run a track's present block on one image, and return its sizes."""
        device = device_of(track.models.pruned)
        first = track.pruned[0][:1].to(device)
        largest = largest_activation(track.models.pruned, lambda: track.run_pruned(first))
        largest = max(largest, first.numel() * first.element_size())
        return BlockSizes(
            number=sum(len(batch) for batch in track.pruned),
            activation=largest,
            batch=fast_size(device, largest),
            memory_limit=memory_limit,
        )

    def allows_one_pass(self, num_layers: int) -> bool:
        """Return whether all images should run at once, so that each layer is refitted when the pass reaches it.

        On a processor, a few passes in small batches take less time than one in which every activation is too large to
        stay where the last one was.
        """
        together = self.number * self.activation
        if _LIVE_TENSORS * together > self.memory_limit:
            return False
        return self.batch is None or num_layers > _FEW_LAYERS or together <= _REUSED_BYTES

    def bytes_of_rows(self, rows: int, values: int) -> int:
        """Return the bytes of some rows of each image, of so many values each."""
        return self.number * rows * values * _BYTES
