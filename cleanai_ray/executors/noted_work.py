"""Work of one process that goes on with smaller batches when memory runs out, and notes it in the run directory."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from cleanai_ray.executors.writer import RunStore
from cleanai_ray.nn.batch_limit import process_limit
from cleanai_ray.nn.notices import collected_notices
from cleanai_ray.stages.environment import worker_note
from cleanai_ray.stages.workspace import Workspace

_Found = TypeVar("_Found")


def run_noted(store: RunStore, workspace: Workspace, what: str, work: Callable[[], _Found]) -> _Found:
    """Return the result of work on a workspace's batches; its notices become warnings and notes of the run.

    Args:
        store: The run directory.
        workspace: The opened study, whose `batches` the work reads.
        what: What runs, for the notices.
        work: Called again with smaller batches where memory runs out; see `BatchLimit.within_memory`.
    """
    store.note("workers", worker_note(workspace))
    with collected_notices() as notices:
        found = process_limit.within_memory(work, what)
    if notices:
        store.note("warnings", dict.fromkeys(notices, what))
    if notices.information:
        store.note("information", dict.fromkeys(notices.information, what))
    return found
