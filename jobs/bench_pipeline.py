r"""A benchmark of the way from image files to batches, on a tree of JPEGs that it writes itself.

`decode`: batches are read with decoded images being kept for the first time, kept already, and not at all, each against
plain decoding: a DataLoader of torch with as many workers and torchvision's usual transforms, from files to normalised
inputs. The orders are plain, ours, ours, plain, so that other load on the machine slows both alike, and all workers run
before the first clock starts. The same DataLoader is also timed up to bytes, as for a GPU that normalises.
`decoders` compares what one image costs. `study` counts how often a study of two methods decodes each image. `measures`
takes the CPU time of what a study measures on the dense model, in one process: statistics and second moments, and then
sensitivity.

python jobs/bench_pipeline.py
python jobs/bench_pipeline.py --parts measures --images 512 --model resnet50
python jobs/bench_pipeline.py --parts decode --images 512 --num-workers 2 --rounds 9
"""

from __future__ import annotations

import argparse
import io
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from bench_calibration import print_table, ratio, spread
from PIL import Image
from rich.console import Console
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms
from torchvision.io import ImageReadMode, decode_jpeg
from torchvision.transforms import functional

from cleanai_ray.config.sections import CacheSection, DataSection
from cleanai_ray.config.study import parse_study
from cleanai_ray.data import BatchOptions, ImageDataset, batches, kept_images
from cleanai_ray.data.image_folder import ImageFolder
from cleanai_ray.data.reading import DECODE_LOG
from cleanai_ray.data.transforms import IMAGENET_MEAN, IMAGENET_STD
from cleanai_ray.executors.progress import ProgressReporter
from cleanai_ray.executors.run_study import RunOptions, run_study
from cleanai_ray.models import build_model
from cleanai_ray.nn.allocator import keep_freed_memory
from cleanai_ray.stages.dense_measures import measure_study_curves
from cleanai_ray.stages.planning import check_study
from cleanai_ray.stages.shard_measures import ShardMeasurer
from cleanai_ray.stages.workspace import open_workspace
from cleanai_ray.statistics.merging import merge_tree
from cleanai_ray.storage.run_directory import RunDirectory

SHAPE = (3, 224, 224)
RESIZE = 256
PARTS = ("decode", "decoders", "study")
"""What runs unless parts are named: `measures` takes ten minutes for a ResNet-50."""
NUM_CLASSES = 4


def parse_arguments(words: list[str]) -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=[*PARTS, "measures"], default=list(PARTS))
    parser.add_argument("--images", type=int, default=512, help="JPEGs of 500 x 375 pixels")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--num-workers", type=int, default=2)
    parser.add_argument("--model", default="resnet50", help="the network of `measures`")
    parser.add_argument("--rounds", type=int, default=5)
    return parser.parse_args(words)


def write_jpegs(root: Path, number: int, size: tuple[int, int]) -> None:
    """Write parts of scikit-learn's two photographs as JPEGs: three quarters below train/, the rest below val/."""
    from sklearn.datasets import load_sample_images

    photos = [Image.fromarray(image).resize((800, 534)) for image in load_sample_images().images]
    for index in range(number):
        x, y = (int(value) for value in np.random.default_rng(index).integers(0, (300, 150)))
        folder = root / ("val" if index % 4 == 3 else "train") / f"c{index // 4 % NUM_CLASSES}"
        folder.mkdir(parents=True, exist_ok=True)
        part = photos[index % 2].crop((x, y, x + 500, y + 375)).resize(size)
        part.save(folder / f"{index}.jpg", quality=90)


class PlainDecoding(Dataset[Tensor]):
    """Files, decoded by PIL, resized and cropped: normalised [C, H, W], or bytes."""

    def __init__(self, paths: list[str], *, as_bytes: bool) -> None:
        self.paths = paths
        placed = [transforms.Resize(RESIZE), transforms.CenterCrop(SHAPE[1:])]
        normalised = [transforms.ToTensor(), transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD)]
        self.prepare = transforms.Compose([*placed, *([transforms.PILToTensor()] if as_bytes else normalised)])

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Tensor:
        with Image.open(self.paths[index]) as image:
            return self.prepare(image.convert("RGB"))


def opened(root: Path) -> ImageDataset:
    """Return the training images of a tree."""
    data = DataSection(name="image_folder", root=str(root), options={"index_cache": False})
    return ImageFolder(data, SHAPE).dataset("train")


def seconds(work: Callable[[], object]) -> float:
    """Return how long something took once."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def time_pipeline(root: Path, options: argparse.Namespace) -> Iterator[list[str]]:
    """Yield a row for each way to read the images."""
    ours = opened(root)
    count = len(ours)  # type: ignore[arg-type]
    paths = [ours.where(index) for index in range(count)]  # type: ignore[attr-defined]
    sizes = {"batch_size": options.batch_size, "num_workers": options.num_workers}
    plain_loader, bytes_loader = (
        DataLoader(PlainDecoding(paths, as_bytes=as_bytes), persistent_workers=options.num_workers > 0, **sizes)
        for as_bytes in (False, True)
    )

    def plain(loader: DataLoader[Tensor] = plain_loader) -> None:
        assert sum(len(images) for images in loader) == count

    def read(folder: str | None) -> None:
        section = None if folder is None else CacheSection(folder=folder)
        kept = kept_images(section, "train", ours, SHAPE)
        settings = BatchOptions(num_workers=options.num_workers)
        got = batches(ours, range(count), options.batch_size, settings, kept=kept)
        assert sum(len(labels) for _, labels in got) == count

    with tempfile.TemporaryDirectory() as folder:
        numbers = iter(range(10**6))
        ways: dict[str, Callable[[], None]] = {
            "plain decoding to bytes": lambda: plain(bytes_loader),
            "not kept": lambda: read(None),
            "kept, for the first time": lambda: read(f"{folder}/{next(numbers)}"),
            "kept already": lambda: read(f"{folder}/again"),
        }
        plain()
        for title, way in ways.items():
            way()
            orders = [[seconds(each) for each in (plain, way, way, plain)] for _ in range(options.rounds)]
            rates = [count / each for order in orders for each in order[1:3]]
            speed = [1 / ratio(order) for order in orders]
            yield [title, spread(rates, " images/s"), spread(speed)]


def time_decoders(root: Path) -> Iterator[list[str]]:
    """Yield a row for each decoder: CPU time of decoding, and of decoding, resizing and cropping, for one image."""
    contents = [path.read_bytes() for path in sorted((root / "train").rglob("*.jpg"))[:64]]
    placed = transforms.Compose([transforms.Resize(RESIZE), transforms.CenterCrop(SHAPE[1:])])

    def by_pil(content: bytes) -> Image.Image:
        with Image.open(io.BytesIO(content)) as image:
            return image.convert("RGB")

    def by_torchvision(content: bytes) -> Tensor:
        data = torch.frombuffer(bytearray(content), dtype=torch.uint8)
        return decode_jpeg(data, mode=ImageReadMode.RGB)

    def milliseconds(work: Callable[[bytes], object]) -> float:
        best = float("inf")
        for _ in range(5):
            started = time.process_time()
            for content in contents:
                work(content)
            best = min(best, time.process_time() - started)
        return 1000 * best / len(contents)

    def difference(content: bytes) -> float:
        decoded = functional.pil_to_tensor(by_pil(content)).float()
        return (decoded - by_torchvision(content)).abs().mean().item()

    whole = {
        "PIL": (by_pil, lambda content: functional.pil_to_tensor(placed(by_pil(content)))),
        "torchvision.io, resized by PIL": (
            by_torchvision,
            lambda content: functional.pil_to_tensor(placed(functional.to_pil_image(by_torchvision(content)))),
        ),
        "torchvision.io, resized by torchvision": (by_torchvision, lambda content: placed(by_torchvision(content))),
    }
    apart = max(map(difference, contents))
    for title, (decode, prepare) in whole.items():
        yield [title, f"{milliseconds(decode):.2f} ms", f"{milliseconds(prepare):.2f} ms", f"{apart:.2f}"]


def count_decodes(folder: Path, options: argparse.Namespace) -> Iterator[list[str]]:
    """Yield a row for a study that keeps decoded images, and one for the same study that does not."""
    write_jpegs(folder / "small", 120, (40, 40))
    log = folder / "decodes"
    os.environ[DECODE_LOG] = str(log)
    for title, cache in (("kept", {"folder": str(folder / "kept")}), ("not kept", None)):
        data = {"name": "image_folder", "root": str(folder / "small"), "batch_size": 16, "cache": cache}
        data["num_workers"], data["calibration"] = options.num_workers, {"samples": 40, "shard_size": 16}
        study = parse_study(
            {
                "model": {"name": "resnet20", "num_classes": NUM_CLASSES, "input_shape": [3, 16, 16]},
                "data": data,
                "sweep": {"methods": ["coverage", "reconstruction"], "ratios": [0.3]},
                "repair": {"compensation": "auto", "batch_norm": "auto"},
                "finetune": {"epochs": 0},
                "evaluation": {"split": "val", "latency": None},
            }
        )
        silent, run = ProgressReporter(Console(file=io.StringIO())), RunDirectory(str(folder / title))
        run_study(study, check_study(study), run, RunOptions(executor="local", command=""), silent)
        for split, role in (("train", "calibration"), ("val", "evaluation")):
            decodes = Counter(line for line in log.read_text().splitlines() if f"/{split}/" in line)
            yield [title, role, str(len(decodes)), f"{sum(decodes.values()) / len(decodes):.2f}"]
        log.unlink()
    del os.environ[DECODE_LOG]


def cost_of_measures(root: Path, options: argparse.Namespace) -> Iterator[list[str]]:
    """Yield the CPU seconds of this process for the measures of an untrained dense model, after each of them."""
    data = {"name": "image_folder", "root": str(root), "batch_size": options.batch_size, "num_workers": 0}
    study = parse_study(
        {
            "model": {"name": options.model, "num_classes": NUM_CLASSES, "input_shape": list(SHAPE)},
            "data": {**data, "calibration": {"samples": options.images}},
            "sweep": {"methods": ["reconstruction", "coverage"], "budgets": [{"macs": 0.5}]},
            "evaluation": {"split": "val", "latency": None},
        }
    )
    workspace = open_workspace(study.model_dump_json(), "cpu")
    model, began = build_model(study.model).eval(), time.process_time()
    measurer = ShardMeasurer(workspace, model, "statistics", "moments")
    total = merge_tree([measurer.shard(index) for index in range(len(workspace.shards()))])
    yield ["statistics and second moments", f"{time.process_time() - began:.1f} s"]
    assert total.moments is not None
    measure_study_curves(workspace, model, total.moments)
    yield ["these, and sensitivity", f"{time.process_time() - began:.1f} s"]


def main(words: list[str]) -> None:
    """Print the tables as Markdown, row by row."""
    options = parse_arguments(words)
    torch.set_num_threads(1)
    keep_freed_memory()  # as every process of a study that computes on a CPU
    print(
        f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} before; {options.num_workers} workers, "
        f"{options.rounds} rounds; median and quartiles"
    )
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        if {"decode", "decoders"} & set(options.parts):
            write_jpegs(root / "large", -(-options.images * 4 // 3), (500, 375))
        if "decode" in options.parts:
            print_table(
                ["decoded images", "throughput", "against plain decoding"], time_pipeline(root / "large", options)
            )
        if "decoders" in options.parts:
            header = ["decoder", "decoded", "decoded, resized and cropped", "grey levels from PIL, on average"]
            print_table(header, time_decoders(root / "large"))
        if "measures" in options.parts:
            write_jpegs(root / "measured", 2 * options.images, (500, 375))  # some validate, and some are scored
            header = [f"{options.model}, {options.images} JPEGs", "CPU time"]
            print_table(header, cost_of_measures(root / "measured", options))
        if "study" in options.parts:
            print_table(["decoded images", "role", "images", "decodes of each"], count_decodes(root, options))
    print(f"\nload {os.getloadavg()[0]:.1f} after")


if __name__ == "__main__":
    main(sys.argv[1:])
