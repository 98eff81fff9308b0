"""A run directory on an object store has one driver at a time, by a lease that is renewed and expires."""

from __future__ import annotations

import os
import threading
import time
import uuid
from typing import Any

import pytest
from object_store import ObjectStore

from cleanai_ray.errors import ArtifactError
from cleanai_ray.storage import locking
from cleanai_ray.storage.locking import LEASE_SECONDS, locked
from cleanai_ray.storage.run_directory import RunDirectory

LEASE = "lock.json"


@pytest.fixture
def run(store: ObjectStore) -> RunDirectory:
    return RunDirectory(store.url(f"runs/{uuid.uuid4().hex}"))


def another(**changes: Any) -> dict[str, Any]:
    """What another driver writes."""
    now = time.time()
    return {"host": "elsewhere", "pid": 7, "since": now, "renewed": now, "token": "its", **changes}


def test_the_second_driver_is_refused_and_told_when_it_may_come_back(run: RunDirectory) -> None:
    words = rf"in use by process {os.getpid()} on .*, since 20.*--out.* killed.* 60 seconds"
    with locked(run):
        with pytest.raises(ArtifactError, match=words), locked(run):
            pass
        assert run.read_json(LEASE)["pid"] == os.getpid()
    assert not run.exists(LEASE)
    with locked(run):
        assert run.exists(LEASE)


@pytest.mark.parametrize("left", ["{", "[]", '{"pid": 7}'])
def test_a_damaged_lease_holds_nobody_up(run: RunDirectory, left: str) -> None:
    run.write_text(LEASE, left)
    with locked(run):
        assert run.read_json(LEASE)["pid"] == os.getpid()


def test_a_lease_that_was_not_renewed_counts_for_nothing(run: RunDirectory) -> None:
    run.write_json(LEASE, another(renewed=time.time() - LEASE_SECONDS - 1))
    with locked(run):
        assert run.read_json(LEASE)["token"] != "its"


def test_of_two_that_begin_at_once_the_one_that_wrote_first_gives_way(run: RunDirectory) -> None:
    def overtake() -> None:
        while not run.exists(LEASE):
            time.sleep(0.01)
        run.write_json(LEASE, another())

    thread = threading.Thread(target=overtake)
    thread.start()
    with pytest.raises(ArtifactError, match="in use by process 7 on elsewhere"), locked(run):
        pass
    thread.join()
    assert run.read_json(LEASE)["token"] == "its"


def test_a_lease_is_renewed(run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locking, "LEASE_SECONDS", 0.4)
    with locked(run):
        first = run.read_json(LEASE)
        while run.read_json(LEASE)["renewed"] == first["renewed"]:  # The test's time limit ends a wait for nothing.
            time.sleep(0.05)
        assert run.read_json(LEASE)["since"] == first["since"]


def test_a_driver_that_was_taken_for_dead_leaves_the_lease_of_its_successor(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(locking, "LEASE_SECONDS", 0.4)
    with locked(run):
        run.write_json(LEASE, another())
        while not caplog.records:
            time.sleep(0.05)
    assert "in use by process 7 on elsewhere" in caplog.text
    assert run.read_json(LEASE)["token"] == "its"
