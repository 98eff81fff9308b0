"""Functions run one after another in processes of their own, each with a limit of processor time."""

from __future__ import annotations

import multiprocessing
import resource
from collections.abc import Callable
from typing import Any

from zoo_architectures import Architecture

LIMIT, WALL = 60, 600
"""Seconds of processor time that one function may take, and seconds after which it is ended whatever it took."""


def run_alone(function: Callable[..., None], architecture: Architecture, limit: int = LIMIT) -> dict[str, Any]:
    """Run a function in a process of its own, and return what it noted.

    Args:
        function: Takes an architecture and a function (name, value) that notes a finding.
        architecture: The architecture.
        limit: Seconds of processor time.

    Returns:
        Findings by name; `ended` says why the process ended before it was done, if it did.
    """
    context = multiprocessing.get_context("fork")  # What is imported stays imported.
    reader, writer = context.Pipe(duplex=False)
    process = context.Process(target=_limited, args=(function, architecture, limit, writer))
    process.start()
    writer.close()
    found: dict[str, Any] = {}
    while True:
        if not reader.poll(WALL):
            process.kill()
            found["ended"] = f"not done within {WALL} s"
            break
        try:
            name, value = reader.recv()
        except EOFError:
            break
        found[name] = value
    process.join()
    if process.exitcode and "ended" not in found:
        found["ended"] = (
            f"not done within {limit} s of processor time" if process.exitcode < 0 else "the process failed"
        )
    return found


def _limited(function: Callable[..., None], architecture: Architecture, limit: int, writer: Any) -> None:
    spent = resource.getrusage(resource.RUSAGE_SELF)
    seconds = int(spent.ru_utime + spent.ru_stime) + limit
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 5))
    function(architecture, lambda name, value: writer.send((name, value)))
    writer.close()
