"""The epochs of the dense model's training: noted in the run directory by the worker, shown by the driver."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from cleanai_ray.errors import ArtifactError
from cleanai_ray.executors.context import RunContext
from cleanai_ray.executors.counts import EpochState
from cleanai_ray.executors.writer import RunStore

EPOCHS_FILE = "cache/dense_epochs.json"
_SECONDS = 2.0


def note_epoch(store: RunStore, key: str, total: int, row: Mapping[str, Any]) -> None:
    """Note an epoch that has ended.

    Args:
        store: The run directory.
        key: Digest of the training.
        total: Epochs of the training.
        row: The epoch's row of history, whose validation score has the name of its metric.
    """
    scores = {name.removeprefix("validation_"): value for name, value in row.items() if name.startswith("validation_")}
    metric = next(name for name in scores if name not in ("loss", "merit"))
    content = {"training": key, "epoch": row["epoch"], "total": total, "metric": metric, "score": scores[metric]}
    store.write(EPOCHS_FILE, json.dumps(content).encode())


@contextmanager
def epochs_shown(context: RunContext, key: str) -> Iterator[None]:
    """Show the epochs of a training while the context lasts, and forget them when it has succeeded.

    Args:
        context: The running study.
        key: Digest of the training.
    """
    watch = EpochWatch(context, key)
    watch.look()
    ended = threading.Event()

    def look() -> None:
        while not ended.wait(_SECONDS):
            watch.look()

    thread = threading.Thread(target=look, name=f"epochs-{context.study.name}", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
    watch.look()
    context.run.delete(EPOCHS_FILE)


class EpochWatch:
    """Tells a study's progress of every epoch that was noted.

    Args:
        context: The running study.
        key: Digest of the training.
    """

    def __init__(self, context: RunContext, key: str) -> None:
        self._context, self._key = context, key
        self._state = EpochState()

    def look(self) -> None:
        """Tell of the last epoch that was noted, if it was not told before."""
        run = self._context.run
        try:
            noted = run.read_json(EPOCHS_FILE)
        except ArtifactError:  # There is none yet, or the storage is away: there will be another look.
            return
        if noted["training"] == self._key and noted["epoch"] != self._state.done:
            self._state.advance(noted["epoch"], noted["total"], noted["metric"], noted["score"])
            self._context.progress.epochs(self._state)
