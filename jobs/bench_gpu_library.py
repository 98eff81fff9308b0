"""The sections of `bench_gpu.py` on the library: passes over batches that lie on the device."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from bench_gpu_checks import Check, Setting, forward
from torch import Tensor, nn

import cleanai_ray as cleanai
from cleanai_ray.config.evaluation import LatencySection
from cleanai_ray.config.sections import ModelSection
from cleanai_ray.evaluation.latency import measure_latency
from cleanai_ray.graph.graph import ChannelGraph
from cleanai_ray.models import build_model, ignored_layers
from cleanai_ray.repair import moments
from cleanai_ray.sensitivity import reading_features

POSITIONS = 64
"""Positions of an image that give rows to the second moments."""


def bare_forward(setting: Setting) -> Iterator[Check]:
    """Yield images per second of the bare pass, in float32 and in half precision."""
    model, batches = setting.network(), setting.batches()
    count = sum(len(images) for images in batches)
    forward(model, batches)
    plain = count / setting.seconds(lambda: forward(model, batches))
    yield Check("bare forward, float32", plain, "images/s")
    kind = torch.float16 if setting.device.type == "cuda" else torch.bfloat16
    half = model.to(kind).to(memory_format=torch.channels_last)
    fast = [images.to(kind).contiguous(memory_format=torch.channels_last) for images in batches]
    forward(half, fast)
    quick = count / setting.seconds(lambda: forward(half, fast))
    yield Check(f"bare forward, {str(kind).partition('.')[2]} channels-last", quick, "images/s")


def calibrate(setting: Setting) -> Iterator[Check]:
    """Yield what statistics cost, as multiples of the bare pass over the same batches."""
    model, batches = setting.network(), setting.batches()
    graph = ChannelGraph(model, batches[0][:1], list(ignored_layers(setting.section)))
    features = reading_features(graph)
    observed: dict[str, Any] = {"layers": list(features), "features": features, "positions_per_sample": POSITIONS}

    def bare() -> None:
        forward(model, batches)

    def with_moments() -> None:
        recorder_class: Any = getattr(moments, "MomentRecorder", None)
        if recorder_class is None:  # in two passes
            cleanai.calibrate(model, batches)
            moments.collect_moments(model, batches, **observed)
            return
        with recorder_class(model, **observed) as recorder:
            cleanai.calibrate(model, _announced(batches, recorder))
        recorder.moments()

    def gradients() -> None:
        labels = torch.zeros(len(batches[0]), dtype=torch.long, device=setting.device)
        cleanai.calibrate(model, [(images, labels[: len(images)]) for images in batches], gradients=True)

    yield Check("statistics of inputs", setting.ratio(lambda: cleanai.calibrate(model, batches), bare), most=1.15)
    yield Check("statistics and second moments", setting.ratio(with_moments, bare), most=1.3)
    both = setting.ratio(lambda: cleanai.calibrate(model, batches, outputs=True), bare)
    yield Check("statistics of inputs and outputs", both)
    yield Check("statistics and gradients", setting.ratio(gradients, bare, rounds=1))


def _announced(batches: Sequence[Tensor], recorder: Any) -> Iterator[Tensor]:
    first = 0
    for images in batches:
        recorder.announce(range(first, first + len(images)), torch.ones(len(images), dtype=torch.bool).numpy())
        first += len(images)
        yield images


def sensitivity(setting: Setting) -> Iterator[Check]:
    """Yield the time of the sensitivity analysis."""
    model, batches = setting.network(), setting.batches()
    forward(model, batches)
    bare = setting.seconds(lambda: forward(model, batches))
    took = setting.seconds(
        lambda: cleanai.measure_sensitivity(
            model, batches[0][:1], batches, ignored_layers=ignored_layers(setting.section)
        )
    )
    yield Check(f"measure_sensitivity, {setting.num_images} images", took, "s", most=3)
    yield Check("the same, beside the bare pass", took / bare)


def repair(setting: Setting) -> Iterator[Check]:
    """Yield the time that repair adds to pruning, and the memory that it takes."""
    model, batches = setting.network(), setting.batches()
    ignored = ignored_layers(setting.section)

    def pruned(**options: Any) -> None:
        cleanai.prune(model, batches[0][:1], batches, method="magnitude", ratio=0.3, ignored_layers=ignored, **options)

    forward(model, batches)
    bare = setting.seconds(lambda: forward(model, batches))
    pruned()
    without = setting.seconds(pruned)
    for kind, most in (("sequential", 3.0), ("auto", 6.0)):
        if setting.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(setting.device)
        took = setting.seconds(lambda kind=kind: pruned(repair=kind)) - without  # type: ignore[misc]
        yield Check(f"repair: {kind}, {setting.num_images} images", took, "s", most=most)
        yield Check("the same, beside the bare pass", took / bare)
        if setting.device.type == "cuda":
            yield Check("its peak memory", torch.cuda.max_memory_allocated(setting.device) / 2**30, "GiB")


def latency(setting: Setting) -> Iterator[Check]:
    """Yield speed-ups at half the MACs, as the package measures them and from replayed CUDA graphs."""
    section = ModelSection(name="resnet20", num_classes=10, input_shape=(1, 28, 28))
    yield from _speedups(setting, section, 16)
    if not setting.small:
        yield from _speedups(setting, setting.section, 32)


def _speedups(setting: Setting, section: ModelSection, multiple: int) -> Iterator[Check]:
    dense = build_model(section, seed=0).eval().to(setting.device)
    example = torch.randn(1, *section.input_shape, device=setting.device)

    def pruned(round_to: int | None) -> nn.Module:
        result = cleanai.prune(
            dense,
            example,
            method="magnitude",
            budget={"macs": 0.5},
            round_to=round_to,
            ignored_layers=ignored_layers(section),
        )
        return result.model

    for label, small in (("any widths", pruned(None)), (f"multiples of {multiple}", pruned(multiple))):
        timing = LatencySection(batch_sizes=(1, 64), warmup=3, runs=5 if setting.small else 20)
        rows = measure_latency({"dense": dense, "pruned": small}, example, timing, device=setting.device)
        for row in rows:
            if row["variant"] == "pruned":
                what = f"{section.name}, batch {row['batch_size']}, {label}: speed-up as measured"
                yield Check(what, row["speedup"], note=str(row["backend"]))
        for size in (1, 64):
            images = example.repeat(size, 1, 1, 1)
            both = [_replayed(setting, model, images) for model in (dense, small)]
            yield Check(f"{section.name}, batch {size}, {label}: speed-up of the work", both[0] / both[1])


def _replayed(setting: Setting, model: nn.Module, images: Tensor) -> float:
    """Return the seconds of a pass in half precision: replayed from a CUDA graph, or plainly in float32 on a CPU."""
    runs = 5 if setting.small else 50
    with torch.inference_mode():
        if setting.device.type != "cuda":
            model(images)
            return setting.seconds(lambda: [model(images) for _ in range(runs)])
        half = copy.deepcopy(model).half().to(memory_format=torch.channels_last)
        given = images.half().contiguous(memory_format=torch.channels_last)
        with torch.cuda.stream(torch.cuda.Stream()):
            for _ in range(3):
                half(given)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            half(given)
        graph.replay()

        def replay() -> None:
            for _ in range(runs):
                graph.replay()

        return setting.seconds(replay)
