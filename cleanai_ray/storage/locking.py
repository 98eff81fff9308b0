"""At most one driver per run directory: a second one is refused, and a driver that is killed leaves no lock behind.

The operating system locks a local folder, and frees it when the process ends, however it ends. Object stores have no
locks. There, a lease is a file that its holder keeps renewing, and that expires `LEASE_SECONDS` after the last renewal.
If two drivers begin within the same second, each reads the lease back, and only the one that wrote it last goes on.
"""

from __future__ import annotations

import contextlib
import logging
import os
import platform
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from filelock import FileLock, Timeout

from cleanai_ray.errors import ArtifactError
from cleanai_ray.storage.run_directory import RunDirectory

_log = logging.getLogger(__name__)
_LOCK, _HOLDER = ".lock", "lock.json"
LEASE_SECONDS = 60.0
_RENEWALS = 4
_SETTLE_SECONDS = 1.0


@contextmanager
def locked(run: RunDirectory) -> Iterator[None]:
    """Hold a run directory, so that no other process can.

    Raises:
        ArtifactError: When another process holds it; the message names the process.
    """
    with _locked_folder(run) if run.is_local else _leased(run):
        yield


@contextmanager
def _locked_folder(run: RunDirectory) -> Iterator[None]:
    folder = run.local_path()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ArtifactError(f"output.dir '{run.location}' cannot be made: {error.strerror}") from error
    lock = FileLock(folder / _LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise ArtifactError(_refusal(run)) from None
    try:
        run.write_json(_HOLDER, _describe_holder())
        yield
    finally:
        run.delete(_HOLDER)
        lock.release()


@contextmanager
def _leased(run: RunDirectory) -> Iterator[None]:
    mine = _describe_holder()
    held = _read_holder(run)
    if held is not None and time.time() - held["renewed"] < LEASE_SECONDS:
        raise ArtifactError(
            f"{_refusal(run)}; if it was killed, its lease expires {LEASE_SECONDS:.0f} seconds after the last renewal"
        )
    run.write_json(_HOLDER, mine)
    time.sleep(_SETTLE_SECONDS)
    if (_read_holder(run) or {"token": None})["token"] != mine["token"]:
        raise ArtifactError(_refusal(run))
    stopped = threading.Event()

    def renew() -> None:
        while not stopped.wait(LEASE_SECONDS / _RENEWALS):
            if (_read_holder(run) or mine)["token"] != mine["token"]:
                _log.warning(
                    "%s; this process could not renew its lease in time, and both are running now", _refusal(run)
                )
                return
            with contextlib.suppress(ArtifactError):  # If the store is away for a moment, the next renewal will do.
                run.write_json(_HOLDER, {**mine, "renewed": time.time()})

    thread = threading.Thread(target=renew, name="cleanai-lease", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stopped.set()
        thread.join()
        if (_read_holder(run) or mine)["token"] == mine["token"]:
            run.delete(_HOLDER)


def _describe_holder() -> dict[str, Any]:
    now = time.time()
    return {"host": platform.node(), "pid": os.getpid(), "since": now, "renewed": now, "token": uuid.uuid4().hex}


def _read_holder(run: RunDirectory) -> dict[str, Any] | None:
    try:
        held = run.read_json(_HOLDER)
    except ArtifactError:
        return None
    return held if isinstance(held, dict) and {"renewed", "token"} <= set(held) else None


def _refusal(run: RunDirectory) -> str:
    held = _read_holder(run) or {}
    since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(held["since"])) if "since" in held else "an unknown time"
    who = f"process {held.get('pid', '?')} on {held.get('host', '?')}"
    return (
        f"run directory '{run.location}' is in use by {who}, since {since}; "
        "wait until it ends, or name another with --out"
    )
