"""The allocator keeps freed memory, in processes of their own, since it cannot be told to give it up again."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

from cleanai_ray.nn import allocator
from cleanai_ray.nn.allocator import keep_freed_memory

WORK = """
import sys
from pathlib import Path
import torch
from cleanai_ray.nn.allocator import keep_freed_memory
print(keep_freed_memory() if sys.argv[1] == "kept" else None)
def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096
value = torch.ones(2**24)  # 64 MiB
(heap,) = [line.split()[0] for line in Path("/proc/self/maps").read_text().splitlines() if line.endswith("[heap]")]
first, last = (int(end, 16) for end in heap.split("-"))
print(first <= value.data_ptr() < last)
before = resident()
del value
print((before - resident()) // 2**20)
"""


def run(mode: str) -> tuple[str, str, int]:
    environment = {name: value for name, value in os.environ.items() if name not in allocator._VARIABLES}
    command = [sys.executable, "-c", WORK, mode]
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    taken, is_in_heap, given_back = done.stdout.split()
    return taken, is_in_heap, int(given_back)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_a_freed_tensor_leaves_its_memory_to_the_process() -> None:
    taken, is_in_heap, given_back = run("as it was")
    assert (taken, is_in_heap) == ("None", "False")
    assert given_back >= 60
    taken, is_in_heap, given_back = run("kept")
    assert (taken, is_in_heap) == ("True", "True")
    assert given_back <= 4


@pytest.mark.parametrize("variable", ["MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES", "LD_PRELOAD"])
def test_the_setting_of_the_user_stays(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(allocator.ctypes, "CDLL", None)  # is not called
    assert keep_freed_memory({variable: "something"}) is False


def test_other_libraries_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(allocator.platform, "libc_ver", lambda: ("", ""))
    monkeypatch.setattr(allocator.ctypes, "CDLL", None)
    assert keep_freed_memory({}) is False
