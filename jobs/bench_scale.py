r"""A benchmark of large studies: a merge of many shards, the overhead of a trial, a report on many trials.

`merge`: the pool and the tree of a study's calibration, with actors that hold no model. The statistics of each shard
are those of a real pass of ResNet-50 (random weights, small images), scaled by a factor for the shard. `trials`:
`cleanai run` on a few and on many trials of a tiny network. It measures the CPU time of all processes, the increase per
additional trial, and the overhead: that increase less the time of the trial in one process without Ray. `report`:
`cleanai report` on tables of invented numbers with every column.

python jobs/bench_scale.py
python jobs/bench_scale.py --parts merge --actors 16 --shards 256
"""

from __future__ import annotations

import argparse
import io
import logging
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from resource import RUSAGE_SELF, getrusage
from typing import Any

import ray
from invented_tables import write_run
from process_costs import command_cost
from rich.console import Console

from cleanai_ray.config.study import Study, parse_study
from cleanai_ray.executors.base import ShardWork
from cleanai_ray.executors.progress import ProgressReporter
from cleanai_ray.executors.ray.cluster import connected
from cleanai_ray.executors.ray.object_store import ObjectStoreValue
from cleanai_ray.executors.ray.remote_writer import RemoteWriter, remote_writer
from cleanai_ray.executors.ray.shard_pool import ActorPool
from cleanai_ray.statistics.merging import add_up
from cleanai_ray.storage.run_directory import RunDirectory

MIB = 2**20
SPARE_BYTES = 3 * 2**30
"""Memory of the machine that is left free when actors are started."""


def parse_arguments(words: list[str]) -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--parts", nargs="+", choices=["merge", "trials", "report"], default=["merge", "trials", "report"]
    )
    parser.add_argument("--actors", type=int, default=64)
    parser.add_argument("--shards", type=int, default=1024)
    parser.add_argument("--trials", type=int, nargs=2, default=(4, 24), help="a small and a large number")
    parser.add_argument("--rows", type=int, default=10000, help="trials of the report")
    return parser.parse_args(words)


class SimulatedActor:
    """Makes the statistics of shards from those of one, and adds them up as a calibration actor does.

    Args:
        files: The run directory.
        tally: Counts the sums.
    """

    def __init__(self, files: RemoteWriter, tally: Any) -> None:
        from cleanai_ray.statistics import ActivationStatistics

        self._kind = ActivationStatistics
        self._files = files
        self._tally = tally

    def ready(self) -> int:
        """Return the process's id."""
        return os.getpid()

    def compute(self, call: str, shard: int, name: str, inputs: str, base: bytes) -> tuple[int, bytes]:
        """Return the number of images, and the statistics of a shard, which are kept in the run directory."""
        from dataclasses import replace

        value = self._kind.from_bytes(base)
        factor = 1 + shard / 4096
        layers = {
            layer: replace(one, sum=one.sum * factor, sum_squares=one.sum_squares * factor**2)
            for layer, one in value.inputs.items()
        }
        content = replace(value, inputs=layers).to_bytes()
        self._files.write(name, content, inputs)
        return value.num_samples, content

    def add(self, call: str, *contents: bytes) -> tuple[int, bytes]:
        """Return 0, since no image is read, and the sum of the statistics."""
        started = time.process_time()
        total = add_up([self._kind.from_bytes(content) for content in contents]).to_bytes()
        self._tally.note.remote(time.process_time() - started, sum(map(len, contents)))
        return 0, total


class Tally:
    """Counts the sums that actors made, their CPU seconds and the bytes they read."""

    def __init__(self) -> None:
        self._seen = (0, 0.0, 0)

    def note(self, seconds: float, size: int) -> None:
        """Count a sum."""
        sums, spent, read = self._seen
        self._seen = sums + 1, spent + seconds, read + size

    def seen(self) -> tuple[int, float, int]:
        """Return the number of sums, CPU seconds and bytes."""
        return self._seen


def statistics_of_resnet50() -> bytes:
    """Return the statistics of two small images in ResNet-50, serialised."""
    import torch

    from cleanai_ray import calibrate
    from cleanai_ray.models import build_model

    study = tiny_study("resnet50", [3, 64, 64])
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    return calibrate(build_model(study.model, seed=0).eval(), [images]).to_bytes()


def tiny_study(model: str, input_shape: list[int], trials: int = 1) -> Study:
    """Return a study of random pruning without repair or training, with one trial per seed."""
    return parse_study(
        {
            "name": "bench",
            "model": {"name": model, "num_classes": 10, "input_shape": input_shape},
            "data": {"name": "digits", "calibration": {"samples": 32, "shard_size": 32}},
            "sweep": {"methods": ["random"], "ratios": [0.5], "modes": ["local"], "seeds": list(range(trials))},
            "repair": {"compensation": "none", "batch_norm": "none"},
            "evaluation": {"samples": 32},
            "output": {"save_models": "none"},
        }
    )


def affordable(wanted: int, available: int, each: int) -> int:
    """Return how many processes of `each` bytes fit into memory with `SPARE_BYTES` left: from 1 to `wanted`."""
    return min(wanted, max(1, (available - SPARE_BYTES) // each))


def available_bytes() -> int:
    """Return the memory that is available to new processes, according to Linux."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith("MemAvailable:"))
    return int(line.split()[1]) * 1024


def own_bytes(pid: int) -> int:
    """Return the memory that a process has written to and does not share."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Private_Dirty:"))


def peak_bytes() -> int:
    """Return the peak memory of this process."""
    return getrusage(RUSAGE_SELF).ru_maxrss * 1024


def merge(wanted: int, num_shards: int) -> Iterator[list[str]]:
    """Yield measurements of a calibration without a model, with their names."""
    silent, study = ProgressReporter(Console(file=io.StringIO())), tiny_study("resnet50", [3, 64, 64])
    ray.init(address="local", include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    try:
        with tempfile.TemporaryDirectory() as folder, connected(None) as cluster:
            run = RunDirectory(folder)
            with remote_writer(study, run, cluster.driver_node) as files:
                base = ray.remote(statistics_of_resnet50).options(num_cpus=0).remote()
                tally: Any = ray.remote(Tally).options(num_cpus=0).remote()
                actor = ray.remote(SimulatedActor).options(num_cpus=0)
                first: Any = actor.remote(files, tally)
                each, size = own_bytes(ray.get(first.ready.remote())), len(ray.get(base))
                num_actors = affordable(wanted, available_bytes(), each)
                ray.kill(first)
                before, started = peak_bytes(), time.perf_counter()
                with ActorPool(lambda _: actor.remote(files, tally), num_actors, run, silent) as pool:
                    work = ShardWork(call="calibrate", title="calibration", num_shards=num_shards, inputs="bench")
                    total = pool.sum_shards(work, ObjectStoreValue(base))
                    seconds = time.perf_counter() - started
                sums, spent, read = ray.get(tally.seen.remote())
    finally:
        ray.shutdown()
    yield ["number of actors, private memory of each", f"{num_actors} of {wanted}, {each / MIB:.0f} MiB"]
    yield [
        "number of shards, size of each and of the result",
        f"{num_shards}, {size / MIB:.2f} and {len(total) / MIB:.2f} MiB",
    ]
    yield ["sums made by actors, data read for them", f"{sums}, {read / MIB:,.0f} MiB"]
    yield ["CPU time of all sums, of one", f"{spent:.1f} s; {1000 * spent / sums:.0f} ms"]
    yield ["wall clock from the first actor's start to the merged value", f"{seconds:.0f} s"]
    yield ["peak memory of the driver, before and after", f"{before / MIB:.0f} and {peak_bytes() / MIB:.0f} MiB"]


def work_alone(study: Study) -> float:
    """Return the CPU seconds that the trials of a study take in this process, without Ray."""
    from cleanai_ray.stages.dense import prepare_dense
    from cleanai_ray.stages.dense_measures import DenseMeasures
    from cleanai_ray.stages.outcome import run_trial
    from cleanai_ray.stages.workspace import open_workspace

    workspace = open_workspace(study.model_dump_json(), "cpu")
    dense = prepare_dense(workspace)
    model = workspace.dense_model(dense.weights)
    run_trial(workspace, study.trials()[0], dense, model, DenseMeasures())
    started = time.process_time()
    for trial in study.trials():
        run_trial(workspace, trial, dense, model, DenseMeasures())
    return time.process_time() - started


def trials(few: int, many: int) -> Iterator[list[str]]:
    """Yield measurements of a study of trivial trials, with their names."""
    costs = []
    with tempfile.TemporaryDirectory() as folder:
        for number in (few, many):
            file = Path(folder) / f"{number}.yaml"
            file.write_text(tiny_study("resnet20", [1, 8, 8], number).to_yaml())
            costs.append(command_cost("run", str(file), "--out", f"{folder}/{number}")[1])
            yield [f"CPU time of a study of {number} trials, all processes", f"{costs[-1]:.1f} s"]
    slope = (costs[1] - costs[0]) / (many - few)
    own = work_alone(tiny_study("resnet20", [1, 8, 8], few)) / few
    yield ["CPU time of one more trial", f"{slope:.2f} s"]
    yield ["CPU time of that trial without Ray", f"{own:.2f} s"]
    yield ["overhead per trial", f"{slope - own:.2f} s"]


def report(number: int) -> Iterator[list[str]]:
    """Yield measurements of a report on many trials, with their names."""
    with tempfile.TemporaryDirectory() as folder:
        sizes = write_run(RunDirectory(folder), number)
        yield ["rows", ", ".join(f"{name} {rows:,}" for name, rows in sizes.items())]
        seconds, spent, peak = command_cost("report", folder)
        made = sum(file.stat().st_size for file in Path(folder).glob("report.*"))
    yield ["wall clock; CPU time", f"{seconds:.1f} s; {spent:.1f} s"]
    yield ["peak memory; PDF and HTML", f"{peak / MIB:.0f} MiB; {made / MIB:.1f} MiB"]


def main(words: list[str]) -> None:
    """Print a table for each part as Markdown, row by row."""
    options = parse_arguments(words)
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} before")
    parts = {
        "merge": lambda: merge(options.actors, options.shards),
        "trials": lambda: trials(*options.trials),
        "report": lambda: report(options.rows),
    }
    for name in options.parts:
        print(f"\n| {name} | measured |\n|---|---|")
        for row in parts[name]():
            print(f"| {' | '.join(row)} |", flush=True)
    print(f"\nload {os.getloadavg()[0]:.1f} after")


if __name__ == "__main__":
    main(sys.argv[1:])
