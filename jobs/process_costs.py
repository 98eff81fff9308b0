"""The cost of a command: wall clock, CPU time of all its processes, and peak memory."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

MARK = "CLEANAI_BENCH"
"""Environment variable that marks the processes of a command."""

TICKS = os.sysconf("SC_CLK_TCK")
LOOK_EVERY_SECONDS = 0.2


class CPUTime(threading.Thread):
    """Watches the processes that have a mark in their environment, and records the CPU time of each when last seen.

    Args:
        mark: The value of the variable `MARK`.
    """

    def __init__(self, mark: str) -> None:
        super().__init__(daemon=True)
        self._mark = f"{MARK}={mark}".encode()
        self._seconds: dict[tuple[str, str], float] = {}
        self._over = threading.Event()

    def run(self) -> None:
        """Look every fifth of a second."""
        while not self._over.wait(LOOK_EVERY_SECONDS):
            for process in Path("/proc").glob("[0-9]*"):
                try:
                    if self._mark in (process / "environ").read_bytes().split(b"\0"):
                        words = (process / "stat").read_text().rpartition(")")[2].split()
                        self._seconds[process.name, words[19]] = (int(words[11]) + int(words[12])) / TICKS
                except OSError:
                    continue

    def stop(self) -> float:
        """Stop looking, and return the CPU seconds of all processes."""
        self._over.set()
        self.join()
        return sum(self._seconds.values())


def command_cost(*words: str) -> tuple[float, float, int]:
    """Run a `cleanai` command; return wall-clock seconds, CPU seconds of all processes, peak bytes of the first."""
    mark = f"{os.getpid()}-{time.monotonic_ns()}"
    watch, started = CPUTime(mark), time.perf_counter()
    watch.start()
    command = [sys.executable, "-m", "cleanai_ray", *words]
    process = subprocess.Popen(command, env={**os.environ, MARK: mark}, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - started
    spent = watch.stop()
    if status:
        raise SystemExit(f"{' '.join(command)} failed with {os.waitstatus_to_exitcode(status)}")
    return seconds, spent, usage.ru_maxrss * 1024
