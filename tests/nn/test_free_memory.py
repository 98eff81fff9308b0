"""Free memory, from the files of a system that is made up, and from a card that is."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from cleanai_ray.nn import memory

GIB = 1024**3


def system(folder: Path, files: dict[str, str], available: int = 20 * GIB) -> Path:
    meminfo = f"MemTotal: {32 * GIB // 1024} kB\nMemFree: 1 kB\nMemAvailable: {available // 1024} kB\n"
    for name, content in {"proc/meminfo": meminfo, **files}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)
    return folder


def group(path: str, most: object, used: int, cached: int = 0) -> dict[str, str]:
    return {
        f"sys/fs/cgroup{path}/memory.max": f"{most}\n",
        f"sys/fs/cgroup{path}/memory.current": f"{used}\n",
        f"sys/fs/cgroup{path}/memory.stat": f"anon 1\ninactive_file {cached}\n",
    }


OLD = {
    "proc/self/cgroup": "9:name=systemd:/\n4:cpu,memory:/box\n0::/\n",
    "sys/fs/cgroup/memory/box/memory.limit_in_bytes": f"{6 * GIB}\n",
    "sys/fs/cgroup/memory/box/memory.usage_in_bytes": f"{3 * GIB}\n",
    "sys/fs/cgroup/memory/box/memory.stat": f"inactive_file 7\ntotal_inactive_file {GIB}\n",
}
SYSTEMS = {
    "no groups": ({}, 20 * GIB),
    "no limit": ({"proc/self/cgroup": "0::/a\n", **group("/a", "max", 3 * GIB)}, 20 * GIB),
    "a limit, and a cache that can be dropped": (
        {"proc/self/cgroup": "0::/a\n", **group("/a", 8 * GIB, 3 * GIB, GIB)},
        6 * GIB,
    ),
    "the group around it has less": (
        {"proc/self/cgroup": "0::/a/b\n", **group("/a", 8 * GIB, 7 * GIB), **group("/a/b", 8 * GIB, GIB)},
        GIB,
    ),
    "a container that sees its own group as the root": (
        {"proc/self/cgroup": "0::/of/the/host\n", **group("", 4 * GIB, GIB)},
        3 * GIB,
    ),
    "more is used than allowed": ({"proc/self/cgroup": "0::/a\n", **group("/a", GIB, 2 * GIB)}, 0),
    "version 1": (OLD, 4 * GIB),
}


@pytest.mark.parametrize("name", SYSTEMS)
def test_host_memory_is_what_the_machine_and_every_group_around_the_process_have_left(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files, expected = SYSTEMS[name]
    monkeypatch.setattr(memory, "_SYSTEM", system(tmp_path, files))
    assert memory.free_bytes("cpu") == expected


def test_a_machine_that_does_not_tell_has_some_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_SYSTEM", tmp_path)
    assert memory.free_bytes("cpu") == 4 * GIB


@pytest.mark.parametrize(("threads", "cores", "share"), [(1, 8, 1 / 16), (4, 8, 1 / 4), (8, 8, 1 / 2), (16, 8, 1 / 2)])
def test_a_process_plans_with_half_of_what_its_threads_are_of_the_cores(
    threads: int, cores: int, share: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "_SYSTEM", system(tmp_path, {}))
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    monkeypatch.setattr(memory.os, "cpu_count", lambda: cores)
    assert memory.working_bytes("cpu") == int(20 * GIB * share)


@pytest.mark.parametrize(("fraction", "expected"), [(1.0, 33 * GIB), (0.5, 33 * GIB), (0.25, 13 * GIB)])
def test_a_card_has_what_the_driver_and_torch_have_free_within_the_share_of_the_process(
    fraction: float, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """80 GiB, of which others hold 40 and this process 10, 3 of them free for reuse."""
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (30 * GIB, 80 * GIB))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 10 * GIB)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 7 * GIB)
    monkeypatch.setattr(torch.cuda, "get_per_process_memory_fraction", lambda device: fraction, raising=False)
    assert memory.free_bytes("cuda:0") == expected
    assert memory.working_bytes("cuda:0") == expected // 2


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_real_card_has_less_free_once_memory_is_taken_and_as_much_once_it_is_given_back() -> None:
    before = memory.free_bytes("cuda")
    taken = torch.zeros(64 * 1024**2, dtype=torch.uint8, device="cuda")
    assert before - memory.free_bytes("cuda") >= taken.nbytes
    del taken
    assert 0 < memory.free_bytes("cuda") <= torch.cuda.get_device_properties(0).total_memory
