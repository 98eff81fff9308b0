"""Fixtures that every test may ask for: a small real Ray, real data, real weights, and repeatable randomness."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import random
import sys
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import numpy as np
import pytest
import torch
from object_store import CREDENTIALS, ObjectStore, serving

TESTS = Path(__file__).resolve().parent
REPOSITORY = TESTS.parent
FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
STATM, MUCH, MORE = Path("/proc/self/statm"), 2 * 1024**3, 512 * 1024**2
REFERENCE_WEIGHTS = TESTS / "fixtures" / "resnet20_fashion_mnist.safetensors"

# Ray reads these when it is imported and started, here and in every process that it starts. Its workers are as nice as
# the tests, since those of other processes would else leave them next to nothing of the cores.
os.environ.update({"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled", "RAY_worker_niceness": "0"})
# The last bits of a training depend on the number of threads.
os.environ["OMP_NUM_THREADS"] = "1"

hypothesis.settings.register_profile("cleanai", deadline=None, max_examples=40, derandomize=True)
hypothesis.settings.load_profile("cleanai")
torch.set_num_threads(1)


@pytest.hookimpl(trylast=True)  # once those that are not asked for have gone
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs a GPU where there is none.

    Where pytest-xdist shares the files out, those that start a Ray begin, and then those that are slow, since they take
    longest.
    """
    needs_gpu = pytest.mark.skip(reason="torch.cuda.is_available() is false: this test needs a CUDA device")
    for item in items:
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(needs_gpu)
    _FILES_WITH_RAY.update(item.path for item in items if item.get_closest_marker("ray"))
    if "PYTEST_XDIST_WORKER" in os.environ:
        slow = {item.path for item in items if item.get_closest_marker("slow")}
        items.sort(key=lambda item: (item.path not in _FILES_WITH_RAY, item.path not in slow))


def pytest_collection_finish() -> None:
    """Leave out what was imported where garbage is looked for: millions of objects, which stay."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _freed() -> Iterator[None]:
    """Give the memory of models back, after a test that leaves a process with much of its own, and more than before.

    Graphs of models hold each other in cycles, and a study tells the allocator to keep freed memory, which then lies in
    pieces between what stays: over all files, gigabytes. Looking for garbage takes a second, so it is not done after
    every test of a process that needs as much.
    """
    yield
    if sys.platform != "linux" or _own_memory() < _most_memory["bytes"]:
        return
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's
    if trim is not None:
        trim(0)
    _most_memory["bytes"] = max(MUCH, _own_memory() + MORE)


_most_memory = {"bytes": MUCH}


def _own_memory() -> int:
    """Return the resident bytes of this process that no file backs, as those of torch's libraries are."""
    _, resident, shared, *_ = STATM.read_text().split()
    return (int(resident) - int(shared)) * os.sysconf("SC_PAGE_SIZE")


@pytest.fixture(autouse=True)
def _seed() -> None:
    """Give every test the same random numbers, whichever tests ran before it."""
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 - the legacy generator is what libraries under test may read
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def fashion_mnist_root() -> Path:
    """The folder of Fashion-MNIST's idx files, as Debian's package dataset-fashion-mnist installs them."""
    if not (FASHION_MNIST / "t10k-images-idx3-ubyte.gz").exists():
        pytest.skip(f"{FASHION_MNIST} is missing: apt-get install dataset-fashion-mnist")
    return FASHION_MNIST


@pytest.fixture(scope="session")
def reference_weights() -> Path:
    """Weights of a ResNet-20 that scores 93.06 % on the 10,000 Fashion-MNIST test images."""
    return REFERENCE_WEIGHTS


@pytest.fixture(scope="module")
def store() -> Iterator[ObjectStore]:
    """A real S3-compatible server, and the credentials for it in the environment."""
    with pytest.MonkeyPatch.context() as patch, serving() as store:
        for name, value in CREDENTIALS.items():
            patch.setenv(name, value)
        yield store


@pytest.fixture
def no_network(monkeypatch) -> Iterator[None]:
    """A proxy that refuses every connection; urllib's opener, which keeps the proxies it first saw, is made anew."""
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    urllib.request.install_opener(None)
    yield
    urllib.request.install_opener(None)


@contextlib.contextmanager
def _running_ray() -> Iterator[None]:
    import ray

    path = os.pathsep.join([str(REPOSITORY), str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", path)
        ray.init(
            address="local",
            num_cpus=2,
            object_store_memory=300 * 1024**2,
            include_dashboard=False,
            log_to_driver=False,
            logging_level="ERROR",
        )
        yield
        ray.shutdown()


_STARTED = contextlib.ExitStack()  # the Ray that is there, if any
_FILES_WITH_RAY: set[Path] = set()


@pytest.fixture(scope="session")
def start_ray() -> Callable[[], None]:
    """Return a function that starts the one Ray of a process, unless it is there."""

    def start() -> None:
        import ray

        if not ray.is_initialized():
            _STARTED.enter_context(_running_ray())

    return start


@pytest.fixture
def ray_session(start_ray: Callable[[], None]) -> None:
    """One Ray of two CPUs for the tests of a process; its workers can import test modules, as plugins are imported."""
    start_ray()


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Stop Ray before a file that does without: an idle one takes a tenth of a core."""
    if item.path not in _FILES_WITH_RAY:
        _STARTED.close()


def pytest_sessionfinish() -> None:
    """Stop Ray, if it is there."""
    _STARTED.close()
