"""The sections of `bench_gpu.py` that run studies."""

from __future__ import annotations

import io
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from bench_gpu_checks import Check, Setting, forward
from PIL import Image
from rich.console import Console
from sklearn.datasets import load_sample_images

from cleanai_ray.config.study import Study, parse_study
from cleanai_ray.errors import ReportError
from cleanai_ray.executors.progress import ProgressReporter
from cleanai_ray.executors.run_study import RunOptions, run_study
from cleanai_ray.stages.planning import check_study
from cleanai_ray.storage import schemas
from cleanai_ray.storage.run_directory import RunDirectory

FASHION_MNIST = "/usr/share/datasets/fashion-mnist"
REFERENCE = Path(__file__).resolve().parent.parent / "tests" / "fixtures" / "resnet20_fashion_mnist.safetensors"


class StageTimes(ProgressReporter):
    """Notes how long each stage of a study takes, and when shards are done; prints nothing."""

    def __init__(self) -> None:
        super().__init__(Console(file=io.StringIO()))
        self.seconds: dict[str, float] = {}
        self._shards: dict[str, list[tuple[float, int]]] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Note the seconds of a stage."""
        started = time.perf_counter()
        with super().stage(name):
            yield
        self.seconds[name] = time.perf_counter() - started

    @contextmanager
    def shards(self, name: str, num_shards: int) -> Iterator[Callable[..., None]]:
        """Note when each shard is done."""
        found = self._shards.setdefault(name, [])
        with super().shards(name, num_shards) as on_shard:

            def noted(done: int, total: int, samples: int = 0) -> None:
                found.append((time.perf_counter(), samples))
                on_shard(done, total, samples)

            yield noted

    def images_per_second(self, stage: str) -> float:
        """Return the pace of a stage from its first shard on: without the start of processes and what they load."""
        (began, _), *others = self._shards[stage]
        return sum(samples for _, samples in others) / max(1e-9, others[-1][0] - began)


def _run(setting: Setting, study: Study, folder: str) -> tuple[StageTimes, list[dict[str, Any]]]:
    """Run a study, and return the times of its stages and the rows of its trials; a missing report is no fault."""
    times = StageTimes()
    try:
        run_study(study, check_study(study), RunDirectory(folder), RunOptions(executor=setting.executor), times)
    except ReportError as error:
        print(f"-     {error}", flush=True)
    return times, pq.read_table(Path(folder) / schemas.RESULTS_FILE).to_pylist()


def _gpus(setting: Setting) -> str | int:
    return "auto" if setting.device.type == "cuda" else 0


def _photo(folder: str, num_train: int, size: tuple[int, int], index: int) -> None:
    x, y = (int(value) for value in np.random.default_rng(index).integers(0, (100, 50)))
    place = Path(folder) / ("train" if index < num_train else "val") / f"c{index % 20:02d}"
    place.mkdir(parents=True, exist_ok=True)
    photo = Image.fromarray(load_sample_images().images[index % 2])
    photo.crop((x, y, x + size[0], y + size[1])).save(place / f"{index}.jpg", quality=90)


def _decode(shape: tuple[int, int], path: Path) -> int:
    with Image.open(path) as image:
        return int(np.asarray(image.convert("RGB").resize(shape))[0, 0, 0])


def _bare_speed(setting: Setting) -> float:
    """Return images per second of the bare pass; nothing of it stays on the device."""
    model, batches = setting.network(), setting.batches()
    forward(model, batches)
    return sum(map(len, batches)) / setting.seconds(lambda: forward(model, batches))


def jpeg_study(setting: Setting) -> Iterator[Check]:
    """Yield how fast a study on JPEGs calibrates, beside plain decoding by all cores and the bare pass."""
    cores = os.cpu_count() or 1
    num_train, num_val, samples = (60, 40, 32) if setting.small else (2600, 600, 2048)
    size = (64, 48) if setting.small else (500, 375)
    height, width = setting.section.input_shape[1:]
    with tempfile.TemporaryDirectory() as folder:
        with ProcessPoolExecutor(min(cores, 2) if setting.small else cores) as pool:
            list(pool.map(partial(_photo, folder, num_train, size), range(num_train + num_val), chunksize=20))
            paths = sorted((Path(folder) / "train").rglob("*.jpg"))[:samples]
            started = time.perf_counter()
            list(pool.map(partial(_decode, (width, height)), paths, chunksize=8))
            decode = len(paths) / (time.perf_counter() - started)
        yield Check(f"plain decoding by {cores} processes", decode, "images/s")
        bare = _bare_speed(setting)
        study = _study_on(folder, setting, samples)
        times, rows = _run(setting, study, f"{folder}/run")
    found = samples / times.seconds["calibration"]
    yield Check("calibration: the whole stage, with the start of its processes", found, "images/s")
    pace = times.images_per_second("calibration")
    yield Check("calibration from its first shard on", pace, "images/s")
    limit, name = min((decode, "decoding"), (bare, "the bare pass"))
    yield Check(f"this pace beside {name}, the slower one", pace / limit, least=0.9)
    for stage in ("second moments", "sensitivity"):
        if stage in times.seconds:
            yield Check(f"{stage}: the whole stage", times.seconds[stage], "s")
    yield Check("trials that failed", float(sum(row["status"] != schemas.OK for row in rows)), "", most=0)


def _study_on(folder: str, setting: Setting, samples: int) -> Study:
    section = setting.section
    return parse_study(
        {
            "name": "bench-jpegs",
            "model": {"name": section.name, "num_classes": 20, "input_shape": list(section.input_shape)},
            "data": {
                "name": "image_folder",
                "root": folder,
                "batch_size": 16 if setting.small else 128,
                "calibration": {"samples": samples, "shard_size": 16 if setting.small else 256},
            },
            "sweep": {"methods": ["wanda", "reconstruction"], "ratios": [0.3]},
            "evaluation": {"split": "val", "latency": None},
            "resources": {"gpus_per_trial": _gpus(setting)},
            "output": {"save_models": "none"},
        }
    )


def _small_inputs(setting: Setting, methods: list[str], **sections: Any) -> Study:
    """Return a study of ResNet-20 on Fashion-MNIST; on digits where that is missing, or for toy sizes."""
    has_data = not setting.small and (Path(FASHION_MNIST) / "t10k-images-idx3-ubyte.gz").exists()
    shape = [1, 28, 28] if has_data else [1, 8, 8]
    model: dict[str, Any] = {"name": "resnet20", "num_classes": 10, "input_shape": shape}
    model |= {"weights": str(REFERENCE)} if has_data else {"train": {"epochs": 1}}
    data = {"name": "fashion_mnist", "root": FASHION_MNIST} if has_data else {"name": "digits"}
    samples = 64 if setting.small else 1024
    return parse_study(
        {
            "name": "bench-trials",
            "model": model,
            "data": {**data, "calibration": {"samples": samples}},
            "sweep": {"methods": methods, "ratios": [0.3]},
            "resources": {"gpus_per_trial": _gpus(setting)},
            "output": {"save_models": "none"},
            **(
                {"evaluation": {"samples": 50, "latency": None}} if setting.small else {"evaluation": {"latency": None}}
            ),
            **sections,
        }
    )


def trials(setting: Setting) -> Iterator[Check]:
    """Yield the seconds of a trial of ResNet-20 without fine-tuning, and where they go."""
    with tempfile.TemporaryDirectory() as folder:
        _, rows = _run(setting, _small_inputs(setting, ["magnitude", "wanda", "random"]), folder)
    failed = [row["error"] for row in rows if row["status"] != schemas.OK]
    if failed:
        raise RuntimeError(failed[0])
    # The first trial of a process loads the data and the libraries; the fastest one shows what a trial itself takes.
    best = min(rows, key=lambda row: row["seconds_total"])
    yield Check("ResNet-20: a trial", best["seconds_total"], "s")
    yield Check("beside its repair", best["seconds_total"] - (best["seconds_repair"] or 0.0), "s", most=3)
    yield Check("its evaluation", best["seconds_evaluate"], "s")
    yield Check("its repair", best["seconds_repair"], "s")


def crash(setting: Setting) -> Iterator[Check]:
    """Yield how many trials fail beside one that asserts on the device: none should."""
    here = str(Path(__file__).resolve().parent)
    given = os.environ.get("PYTHONPATH", "")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [here, given]))  # for the workers, which load the plug-in
    sys.path.insert(0, here)
    methods = ["device_assert", "magnitude", "random"]
    try:
        with tempfile.TemporaryDirectory() as folder:
            study = _small_inputs(setting, methods, plugins=["bench_gpu_plugin"])
            _, rows = _run(setting, study, folder)
    finally:
        os.environ["PYTHONPATH"] = given
        sys.path.remove(here)
    others = [row for row in rows if row["method"] != "device_assert"]
    failed = sum(row["status"] != schemas.OK for row in others)
    yield Check("trials that failed beside one that asserts on the device", float(failed), "", most=0)
