"""The folder of a node that keeps decoded images: its files are made, counted and deleted here."""

from __future__ import annotations

import logging
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from weakref import WeakValueDictionary

from filelock import FileLock, Timeout

from cleanai_ray.config.images import CacheSection
from cleanai_ray.data.decoded import DecodedImages, Layout, fcntl

_log = logging.getLogger(__name__)
_FORMAT = 1
_SUFFIX = ".decoded"
_SPARE = 0.05
"""Share of the filesystem that is left free."""
_PATIENCE = 60.0
"""Seconds that a process waits for another one to make or delete a file."""

_opened: WeakValueDictionary[tuple[int, str], DecodedImages] = WeakValueDictionary()
"""The files that a process has open, by its number and their paths: to open one again would free its locks."""


def usual_folder() -> Path:
    """Return the folder of decoded images if a study names none: below `$CLEANAI_CACHE`, or the system's for temporary
    files, which is on a disk of the node itself.
    """
    given = os.environ.get("CLEANAI_CACHE")
    owner = os.getuid() if hasattr(os, "getuid") else 0
    return Path(given or Path(tempfile.gettempdir()) / f"cleanai-ray-{owner}").expanduser() / "decoded"


def opened_here(layout: Layout) -> DecodedImages | None:
    """Return the file of a layout if this process has it open, and it was not deleted since."""
    known = _opened.get((os.getpid(), layout.path))
    return None if known is None or known.is_gone else known


class DecodedFolder:
    """Files of decoded images, up to a number of bytes; the least recently used are deleted for others.

    Files that a process has open are not deleted.

    Args:
        section: The study's `data.cache`.
    """

    def __init__(self, section: CacheSection) -> None:
        self.path = Path(section.folder).expanduser() if section.folder else usual_folder()
        self.max_bytes = section.max_bytes

    def open(self, key: str, num_samples: int, shape: tuple[int, int, int]) -> DecodedImages | None:
        """Return the file of a key, which is made if there is none; None, and a warning, where none can be made.

        Args:
            key: Digest of everything but the samples' own versions that their bytes depend on.
            num_samples: Samples of the split.
            shape: Channels, height and width of an image.
        """
        path = self.path / f"{key}-{_FORMAT}-{_boot()}{_SUFFIX}"
        layout = Layout(path=str(path), num_samples=num_samples, shape=shape)
        known = opened_here(layout)
        if known is not None:
            return known
        try:
            _make_private(self.path)
            with self._locked():
                opened = _open(layout)
        except (OSError, Timeout) as error:
            _log.warning("decoded images are not kept in '%s': %s", self.path, error)
            return None
        _opened[os.getpid(), layout.path] = opened
        return opened

    def room(self, images: DecodedImages, wanted: int) -> int:
        """Return how many more images of a file may be kept; files that no process has open are deleted if need be.

        Args:
            images: A file of this folder.
            wanted: The number of images that it lacks.
        """
        needed = wanted * images.layout.sample_bytes
        try:
            os.utime(images.layout.path)
            with self._locked():
                spare = self._spare()
                for size, path in self._unused() if spare < needed else ():
                    _delete(path)
                    spare += size
                    if spare >= needed:
                        break
        except (OSError, Timeout) as error:
            _log.warning("decoded images are not kept in '%s': %s", self.path, error)
            return 0
        return max(0, min(wanted, spare // images.layout.sample_bytes))

    def _spare(self) -> int:
        """Return the bytes that may be added."""
        used = sum(_allocated(path.stat()) for path in self.path.glob(f"*{_SUFFIX}"))
        disk = os.statvfs(self.path)
        free = disk.f_bavail * disk.f_frsize - int(_SPARE * disk.f_blocks * disk.f_frsize)
        return min(self.max_bytes - used, free)

    def _unused(self) -> Iterator[tuple[int, str]]:
        """Yield the sizes and paths of the files that no process has open, from the least recently used."""
        found = sorted((path.stat().st_mtime_ns, str(path)) for path in self.path.glob(f"*{_SUFFIX}"))
        for _, path in found:
            if (os.getpid(), path) not in _opened and not _is_held(f"{os.path.splitext(path)[0]}.lock"):
                yield _allocated(os.stat(path)), path

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with FileLock(self.path / ".folder", timeout=_PATIENCE):
            yield


def _boot() -> str:
    """Return what tells this start of this machine from others: images and states reach the disk in no order."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()[:8]
    except OSError:
        return os.uname().nodename


def _make_private(folder: Path) -> None:
    """Make a folder of this user alone: in a folder for temporary files, another one could have made it."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    found = folder.stat()
    if fcntl is None or found.st_uid != os.getuid() or stat.S_IMODE(found.st_mode) & 0o022:
        raise OSError("the folder belongs to another user, or others may write to it")


def _open(layout: Layout) -> DecodedImages:
    file = Path(layout.path)
    if not file.exists() or not Path(layout.lock).exists() or file.stat().st_size != layout.num_bytes:
        _delete(layout.path)
        Path(layout.lock).touch()
        with file.open("xb") as stream:
            stream.truncate(layout.num_bytes)
    images = DecodedImages(layout)
    images.hold()
    os.utime(layout.path)
    return images


def _delete(path: str) -> None:
    Path(path).unlink(missing_ok=True)
    Path(f"{os.path.splitext(path)[0]}.lock").unlink(missing_ok=True)


def _is_held(lock: str) -> bool:
    """Return whether a process has the file of a lock open."""
    try:
        opened = os.open(lock, os.O_RDWR)
    except FileNotFoundError:
        return False
    try:
        fcntl.lockf(opened, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, 0)
    except OSError:
        return True
    finally:
        os.close(opened)
    return False


def _allocated(found: os.stat_result) -> int:
    return found.st_blocks * 512
