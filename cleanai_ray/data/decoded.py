"""A file of decoded images, which the processes of a node fill together and read from."""

from __future__ import annotations

import contextlib
import errno
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from cleanai_ray.errors import SampleError

try:
    import fcntl
except ImportError:  # Windows has no locks on parts of a file: nothing is kept there
    fcntl = None  # type: ignore[assignment]

PAGE = 4096
RECORD = np.dtype([("stamp", "<u8"), ("label", "<i4"), ("decodes", "<u2"), ("state", "u1"), ("unused", "u1")])
"""What the file says of a sample; `stamp` is its version, `decodes` how often its image was decoded into the file."""

EMPTY, READY, UNREADABLE = 0, 1, 2
_STATE = RECORD.fields["state"][1] if RECORD.fields else 0
_USED = 0
"""The byte of the lock file that every process which has the file open shares; those of the samples follow."""

_FAULTS_THAT_PASS = frozenset(
    {errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ESTALE, errno.EAGAIN, errno.EINTR, errno.ETIMEDOUT}
)
"""Errors of the system: too many open files, a server that does not answer."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """The place of a file of decoded images, and its measures. The file is sparse: it has a slot for every sample.

    Attributes:
        path: The file; the locks are on a second one beside it.
        num_samples: Samples of the split.
        shape: Channels, height and width of an image.
    """

    path: str
    num_samples: int
    shape: tuple[int, int, int]

    @property
    def lock(self) -> str:
        """The file whose bytes are locked."""
        return f"{os.path.splitext(self.path)[0]}.lock"

    @property
    def sample_bytes(self) -> int:
        """Bytes of an image."""
        return int(np.prod(self.shape))

    @property
    def start(self) -> int:
        """The first byte of the images, after the records."""
        return -(-self.num_samples * RECORD.itemsize // PAGE) * PAGE

    @property
    def num_bytes(self) -> int:
        """The apparent size of the file."""
        return self.start + self.num_samples * self.sample_bytes


class DecodedImages:
    """Images uint8 [C, H, W] of the samples of a split, each in a slot of its own.

    Who fills a slot holds a lock on a byte for as long as that takes: the operating system frees it when the process
    ends, however it ends. The state of a slot is written after its image. So no image is decoded twice by processes
    that start at once, and one that is killed leaves an empty slot, which the next one fills. (Threads of one process
    do not exclude each other: they may decode an image twice, to the same bytes.)

    The file is read through memory maps, and written by calls that fail where the disk is full.

    Args:
        layout: The file, which exists.
        inode: The number that the file must have, if another one may have taken its place.

    Raises:
        OSError: When the file cannot be opened.
    """

    def __init__(self, layout: Layout, inode: int | None = None) -> None:
        self.layout = layout
        self._pid = os.getpid()
        with contextlib.ExitStack() as opened:
            self._file, self._locks = (os.open(path, os.O_RDWR) for path in (layout.path, layout.lock))
            opened.callback(self.close)
            self.inode = os.fstat(self._file).st_ino
            if os.fstat(self._file).st_size != layout.num_bytes or inode not in (None, self.inode):
                raise OSError(f"'{layout.path}' is another file than it was")
            # As plain arrays: whatever is taken from a memmap is made another one, which costs more than most images.
            self._records = np.asarray(np.memmap(layout.path, RECORD, "r", 0, (layout.num_samples,)))
            shape = (layout.num_samples, *layout.shape)
            self._images = np.asarray(np.memmap(layout.path, np.uint8, "r", layout.start, shape))
            opened.pop_all()

    def close(self) -> None:
        """Close the file; the locks of this process are freed."""
        if self._pid == os.getpid():
            os.close(self._file)
            os.close(self._locks)
            self._pid = -1

    def __del__(self) -> None:
        if "inode" in self.__dict__:
            self.close()

    @property
    def is_gone(self) -> bool:
        """True if the file was deleted, or this is a process that was forked after it was opened."""
        return self._pid != os.getpid() or os.fstat(self._file).st_nlink == 0

    def hold(self) -> None:
        """Keep others from deleting the file for as long as this process has it open."""
        fcntl.lockf(self._locks, fcntl.LOCK_SH | fcntl.LOCK_NB, 1, _USED)

    def decodes(self) -> np.ndarray:
        """Return how often the image of each sample was decoded since the file was made, int64 [N]."""
        return self._records["decodes"].astype(np.int64)

    def are_known(self, indices: np.ndarray, stamps: np.ndarray) -> np.ndarray:
        """Return, for each sample, whether the file holds its image or its fault in the version of the stamp.

        Args:
            indices: The samples, int64 [N].
            stamps: What `StampedDataset.stamps` says of them now, uint64 [N].
        """
        records = self._records[indices]
        return (records["state"] != EMPTY) & (records["stamp"] == stamps)

    def read(self, index: int) -> tuple[np.ndarray, int]:
        """Return the image of a known sample, a view into the file uint8 [C, H, W], and its class.

        Raises:
            SampleError: When its image could not be decoded: the error that was raised then.
        """
        record, slot = self._records[index], self._images[index]
        if record["state"] == UNREADABLE:
            reason, where = json.loads(slot.tobytes().partition(b"\0")[0])
            raise SampleError(reason, where)
        return slot, int(record["label"])

    def fill(self, index: int, stamp: int, decode: Callable[[], tuple[Tensor, int]]) -> bool:
        """Decode a sample into its slot, if no other process is at it.

        A fault of the sample is kept as well.

        Args:
            index: The sample.
            stamp: Its version.
            decode: Returns its image and its class.

        Returns:
            True if the sample is known now; False if another process is decoding it.

        Raises:
            SampleError: When it cannot be decoded, and the fault is not kept, since it does not fit into the slot or
                may be gone the next time.
            OSError: When the disk is full.
        """
        if not self._lock(index):
            return False
        try:
            record = self._records[index]
            if record["state"] == EMPTY or record["stamp"] != stamp:
                self._fill(index, stamp, decode)
            return True
        finally:
            self._unlock(index)

    @contextlib.contextmanager
    def claimed(self, indices: np.ndarray, stamps: np.ndarray) -> Iterator[np.ndarray]:
        """Keep other processes from decoding samples; `put` fills their slots meanwhile.

        Args:
            indices: The samples, int64 [N].
            stamps: Their versions, uint64 [N].

        Yields:
            The places 0 to N - 1 of those that are not known, and that no other process is decoding.
        """
        held: list[int] = []
        try:
            held.extend(place for place, index in enumerate(indices.tolist()) if self._lock(index))
            free = np.array(held, np.int64)
            yield free[~self.are_known(indices[free], stamps[free])]
        finally:
            for place in held:
                self._unlock(int(indices[place]))

    def put(self, index: int, stamp: int, pixels: Tensor, label: int) -> None:
        """Put the image of a claimed sample into its slot.

        Args:
            index: The sample.
            stamp: Its version.
            pixels: The image, uint8 [C, H, W].
            label: Its class.

        Raises:
            OSError: When the disk is full.
        """
        self._fill(index, stamp, lambda: (pixels, label))

    def _lock(self, index: int) -> bool:
        try:
            fcntl.lockf(self._locks, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, 1 + index)
        except OSError:
            return False
        return True

    def _unlock(self, index: int) -> None:
        fcntl.lockf(self._locks, fcntl.LOCK_UN, 1, 1 + index)

    def _fill(self, index: int, stamp: int, decode: Callable[[], tuple[Tensor, int]]) -> None:
        place, decodes = index * RECORD.itemsize, int(self._records[index]["decodes"]) + 1
        if self._records[index]["state"] != EMPTY:
            os.pwrite(self._file, bytes([EMPTY]), place + _STATE)
        label, state = 0, READY
        try:
            pixels, label = decode()
            content = pixels.contiguous().numpy().data.cast("B")
        except SampleError as error:
            fault, state = json.dumps([error.reason, error.where]).encode() + b"\0", UNREADABLE
            if len(fault) > self.layout.sample_bytes or _may_pass(error):
                raise
            content = memoryview(fault)
        _write(self._file, content, self.layout.start + index * self.layout.sample_bytes)
        record = np.array((stamp, label, min(decodes, 0xFFFF), EMPTY, 0), RECORD)
        _write(self._file, memoryview(record.tobytes()), place)
        os.pwrite(self._file, bytes([state]), place + _STATE)


def _may_pass(error: SampleError) -> bool:
    """Return whether a fault is the system's, which may be gone the next time, and not that of an image's content."""
    return isinstance(error.__cause__, OSError) and error.__cause__.errno in _FAULTS_THAT_PASS


def _write(file: int, content: memoryview, place: int) -> None:
    written = 0
    while written < len(content):
        written += os.pwrite(file, content[written:], place + written)
