r"""A benchmark of calibration against a bare forward pass, and of two calibration actors against one.

Passes are timed against a forward pass of the same model on the same batches in inference mode, in one process and in
the order bare, pass, pass, bare, so that other load on the machine slows both alike. Actors are those of a study, on a
Ray on this machine. A pool of one actor and a pool of two each work through all shards once before the first timing,
and take turns after that: no process starts and no model is built while the clock runs.

python jobs/bench_calibration.py
python jobs/bench_calibration.py --parts passes --models resnet20 --rounds 21
"""

from __future__ import annotations

import argparse
import io
import logging
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import ray
import torch
from rich.console import Console
from torch import Tensor, nn

from cleanai_ray import calibrate
from cleanai_ray.config.study import Study, parse_study
from cleanai_ray.executors.base import ShardPool, ShardWork
from cleanai_ray.executors.progress import ProgressReporter
from cleanai_ray.executors.ray.executor import connect
from cleanai_ray.executors.shared import Shared
from cleanai_ray.graph.graph import ChannelGraph
from cleanai_ray.models import build_model, example_input, ignored_layers
from cleanai_ray.nn.weights import safetensors_bytes
from cleanai_ray.repair.moments import collect_moments
from cleanai_ray.sensitivity import reading_features
from cleanai_ray.statistics import count_sections
from cleanai_ray.storage.run_directory import RunDirectory

CASES: dict[str, tuple[list[int], int, int]] = {"resnet18": ([3, 224, 224], 16, 1), "resnet20": ([1, 28, 28], 128, 4)}
"""Input shape, images per batch and number of batches, for each model."""

ACTORS_CASE = ("resnet18", [3, 64, 64])
"""The model that actors calibrate, and the shape to which digits are enlarged for it."""

BINS = 64


class Cost(NamedTuple):
    """Seconds that something took: on the clock, and of CPU time of this process."""

    wall: float
    cpu: float


def parse_arguments(words: list[str]) -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=["passes", "actors"], default=["passes", "actors"])
    parser.add_argument("--models", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1, help="torch threads for the passes; an actor has one")
    parser.add_argument("--samples", type=int, default=1024, help="images that the actors calibrate on, at most 1,437")
    parser.add_argument("--shard-size", type=int, default=64)
    return parser.parse_args(words)


def study_of(model: str, input_shape: list[int], **calibration: int) -> Study:
    """Return a study of an untrained model on digits, with the coverage metrics that one pass is enough for."""
    return parse_study(
        {
            "name": "bench",
            "model": {"name": model, "num_classes": 10, "input_shape": input_shape},
            "data": {"name": "digits", "calibration": calibration},
            "sweep": {"methods": ["coverage"], "ratios": [0.5]},
        }
    )


def ratio(order: Sequence[float]) -> float:
    """Return how many times as long the middle two took as the outer two."""
    first, one, other, last = order
    return (one + other) / (first + last)


def spread(values: Sequence[float], unit: str = "") -> str:
    """Return the median and the quartiles of values, as text for a table."""
    if len(values) < 2:
        return f"{values[0]:.2f}{unit}"
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return f"{statistics.median(values):.2f}{unit} ({low:.2f} to {high:.2f})"


def timed(work: Callable[[], Any]) -> Cost:
    """Return the cost of doing something once."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return Cost(time.perf_counter() - wall, time.process_time() - cpu)


def passes_of(study: Study, model: nn.Module, batches: list[Tensor]) -> dict[str, Callable[[], Any]]:
    """Return the passes that a study may need for its calibration, by name."""
    graph = ChannelGraph(model, example_input(study.model), list(ignored_layers(study.model)))
    features = reading_features(graph)
    received = calibrate(model, batches).ranges
    both = calibrate(model, batches, outputs=True).ranges
    return {
        "statistics of inputs": lambda: calibrate(model, batches),
        "statistics of inputs and outputs": lambda: calibrate(model, batches, outputs=True),
        "histograms of inputs (second pass)": lambda: count_sections(model, batches, received, sections=BINS),
        "histograms of inputs and outputs (second pass)": lambda: count_sections(model, batches, both, sections=BINS),
        "second moments (repair)": lambda: collect_moments(
            model, batches, layers=list(features), features=features, positions_per_sample=64
        ),
    }


def time_passes(name: str, rounds: int) -> Iterator[list[str]]:
    """Yield the rows of one model."""
    shape, size, number = CASES[name]
    study = study_of(name, shape)
    model = build_model(study.model, seed=0).eval()
    generator = torch.Generator().manual_seed(0)
    batches = [torch.randn(size, *shape, generator=generator) for _ in range(number)]

    def bare() -> None:
        with torch.inference_mode():
            for batch in batches:
                model(batch)

    bare()
    images = size * number
    alone: list[Cost] = []
    for title, work in passes_of(study, model, batches).items():
        work()
        orders = [[timed(each) for each in (bare, work, work, bare)] for _ in range(rounds)]
        alone += [cost for order in orders for cost in (order[0], order[3])]
        wall, cpu = (
            spread([ratio([cost[kind] for cost in order]) for order in orders]) for kind in range(len(Cost._fields))
        )
        spent = [cost.cpu * 1000 / images for order in orders for cost in order[1:3]]
        yield [name, title, wall, cpu, f"{statistics.median(spent):.2f}"]
    spent = [cost.cpu * 1000 / images for cost in alone]
    yield [name, "bare forward pass", "1", "1", f"{statistics.median(spent):.2f}"]


def time_actors(options: argparse.Namespace) -> Iterator[list[str]]:
    """Yield a row for one actor, one for two, and one for the ratio of their speeds."""
    model, shape = ACTORS_CASE
    study = study_of(model, shape, samples=options.samples, shard_size=options.shard_size)
    silent = ProgressReporter(Console(file=io.StringIO()))
    weights = safetensors_bytes(build_model(study.model, seed=0))
    # Both pools exist, but only one works at a time: three actors with one core each, and the driver.
    ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    try:
        with tempfile.TemporaryDirectory() as folder, connect(study, RunDirectory(folder), None) as executor:
            run, sized = RunDirectory(folder), {count: _with_actors(study, count) for count in (1, 2)}
            with (
                executor.shard_pool(sized[1], run, silent) as one,
                executor.shard_pool(sized[2], run, silent) as two,
            ):
                yield from _take_turns(options, study, {1: one, 2: two}, executor.share(weights))
    finally:
        ray.shutdown()


def _with_actors(study: Study, count: int) -> Study:
    resources = study.resources.model_copy(update={"calibration_actors": count})
    return study.model_copy(update={"resources": resources})


def _take_turns(
    options: argparse.Namespace, study: Study, pools: dict[int, ShardPool], weights: Shared[bytes]
) -> Iterator[list[str]]:
    samples = study.draws()[0].samples
    num_shards = -(-samples // study.data.calibration.shard_size)

    def calibrated(pool: ShardPool, number: int) -> float:
        work = ShardWork(call="calibrate", title="calibration", num_shards=num_shards, inputs=str(number))
        started = time.perf_counter()
        pool.sum_shards(work, weights)
        seconds = time.perf_counter() - started
        pool.forget_shards()
        return seconds

    for number, pool in enumerate(pools.values()):
        calibrated(pool, -1 - number)
    orders = []
    for number in range(options.rounds):
        orders.append([calibrated(pools[count], 4 * number + turn) for turn, count in enumerate((2, 1, 1, 2))])
    for count, turns in ((1, (1, 2)), (2, (0, 3))):
        rates = [samples / order[turn] for order in orders for turn in turns]
        yield [f"{count} actor{'s' * (count > 1)}", spread(rates, " images/s"), ""]
    yield ["2 actors against 1", "", spread([ratio(order) for order in orders])]


def print_table(header: list[str], rows: Iterator[list[str]]) -> None:
    """Print a table as Markdown, row by row."""
    print(f"\n| {' | '.join(header)} |\n|{'---|' * len(header)}")
    for row in rows:
        print(f"| {' | '.join(row)} |", flush=True)


def main(words: list[str]) -> None:
    """Print the tables as Markdown, row by row."""
    options = parse_arguments(words)
    torch.set_num_threads(options.threads)
    load = os.getloadavg()[0]
    print(
        f"{os.cpu_count()} cores, load {load:.1f} before; {options.threads} thread(s), {options.rounds} rounds; median "
        "and quartiles"
    )
    if "passes" in options.parts:
        header = ["model", "pass", "wall clock / bare", "CPU time / bare", "CPU ms per image"]
        print_table(header, (row for name in options.models for row in time_passes(name, options.rounds)))
    if "actors" in options.parts:
        model, shape = ACTORS_CASE
        print(f"\n{model}, {'x'.join(map(str, shape))}, {options.samples} digits in shards of {options.shard_size}:")
        print_table(["calibration", "throughput", "ratio"], time_actors(options))
    print(f"\nload {os.getloadavg()[0]:.1f} after")


if __name__ == "__main__":
    main(sys.argv[1:])
