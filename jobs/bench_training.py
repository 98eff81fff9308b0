r"""A benchmark of fine-tuning against a plain loop in torch with the same settings.

Both train the same network on the same batches, which lie in the memory of the device, with SGD, Nesterov momentum and
a cosine schedule. On CUDA both use bfloat16 autocast, channels-last memory and the fused optimiser. They take turns in
one process, in the order plain, ours, ours, plain, so that other load on the machine slows both alike. Ours is all that
`fine_tune` does for an epoch: its sums, the check of the loss, the clock of checkpoints, and a validation of one image.

python jobs/bench_training.py
python jobs/bench_training.py --device cuda --model resnet50 --shape 3 224 224 --batch-size 128 --steps 100
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import statistics
import sys
import time
from typing import Any

import torch
from torch import Tensor, nn

from cleanai_ray.config.finetune import FineTuneSection
from cleanai_ray.config.sections import ModelSection
from cleanai_ray.models import build_model
from cleanai_ray.training.context import LocalContext
from cleanai_ray.training.data import TrainingData
from cleanai_ray.training.fine_tune import fine_tune
from cleanai_ray.training.optimizer import parameter_groups

Batches = list[tuple[Tensor, Tensor]]
RATE, MOMENTUM, DECAY = 0.01, 0.9, 1e-4
GOAL = 0.95


def parse_arguments(words: list[str]) -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", type=torch.device, default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--model", default="resnet20")
    parser.add_argument("--shape", type=int, nargs=3, default=[1, 28, 28], help="channels, height and width")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--steps", type=int, default=20, help="steps of an epoch")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of four epochs")
    parser.add_argument("--compile", action="store_true", help="compile both with torch.compile")
    return parser.parse_args(words)


def train_plainly(model: nn.Module, batches: Batches, device: torch.device, *, compiles: bool) -> None:
    """Train a model for an epoch as a tutorial would, without reading anything back."""
    on_cuda = device.type == "cuda"
    if on_cuda:
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    groups = parameter_groups(model, DECAY)
    optimizer = torch.optim.SGD(groups, lr=RATE, momentum=MOMENTUM, nesterov=True, fused=on_cuda or None)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, len(batches))
    trained: Any = torch.compile(model) if compiles else model
    trained.train()
    for images, labels in batches:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cuda", dtype=torch.bfloat16) if on_cuda else contextlib.nullcontext():
            loss = nn.functional.cross_entropy(trained(images), labels)
        loss.backward()
        optimizer.step()
        schedule.step()


def train_ours(model: nn.Module, batches: Batches, device: torch.device, *, compiles: bool) -> None:
    """Train a model for an epoch by `fine_tune`."""
    recipe = {"epochs": 1, "learning_rate": RATE, "momentum": MOMENTUM, "weight_decay": DECAY, "compile": compiles}
    one = [(batches[0][0][:1], batches[0][1][:1])]
    fine_tune(
        model,
        section=FineTuneSection.model_validate(recipe),
        data=TrainingData(
            train_batches=lambda epoch: batches,
            steps_per_epoch=len(batches),
            validation_batches=lambda: one,
            start_competes=False,
        ),
        context=LocalContext(device=device),
        seed=0,
    )


def seconds(train: Any, model: nn.Module, batches: Batches, options: argparse.Namespace) -> float:
    """Return the seconds of an epoch: of CPU time on a CPU, else on the clock."""
    on_cuda = options.device.type == "cuda"
    clock = time.perf_counter if on_cuda else time.process_time
    trained = copy.deepcopy(model)
    if on_cuda:
        torch.cuda.synchronize()
    started = clock()
    train(trained, batches, options.device, compiles=options.compile)
    if on_cuda:
        torch.cuda.synchronize()
    return clock() - started


def main(words: list[str]) -> None:
    """Print images a second of both loops, and their ratio with the goal."""
    options = parse_arguments(words)
    section = ModelSection(name=options.model, num_classes=10, input_shape=tuple(options.shape))
    model = build_model(section).to(options.device)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(options.batch_size, *options.shape, generator=generator).to(options.device)
    if options.device.type == "cuda":
        images = images.to(memory_format=torch.channels_last)
    labels = torch.randint(0, 10, (options.batch_size,), generator=generator).to(options.device)
    batches = [(images, labels)] * options.steps
    order = (train_plainly, train_ours, train_ours, train_plainly)
    for train in order[:2]:
        seconds(train, model, batches[:2], options)
    taken = [[seconds(train, model, batches, options) for train in order] for _ in range(options.rounds)]
    number = options.batch_size * options.steps
    plain = statistics.median(number * 2 / (first + last) for first, _, _, last in taken)
    ours = statistics.median(number * 2 / (one + other) for _, one, other, _ in taken)
    ratios = [(first + last) / (one + other) for first, one, other, last in taken]
    unit = "images a second" if options.device.type == "cuda" else "images a second of CPU time"
    print(f"{options.model}, {options.steps} steps of {options.batch_size} images, {options.device}; {unit}:")
    print(f"plain torch {plain:.0f}, fine_tune {ours:.0f}; ratio {statistics.median(ratios):.3f} (goal: {GOAL})")
    print(f"ratios of the rounds: {', '.join(f'{ratio:.3f}' for ratio in ratios)}")


if __name__ == "__main__":
    main(sys.argv[1:])
