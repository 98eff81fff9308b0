r"""A benchmark of the speed-up from fewer MACs, with and without widths in multiples of 8.

Dense and pruned models take turns in one process; weights are random, since the time does not depend on them.

python jobs/bench_latency.py
python jobs/bench_latency.py --models resnet50 --budget 0.3 --batch-sizes 1 64 --backends eager compile --threads 4
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator

import torch
from torch import nn

import cleanai_ray as cleanai
from cleanai_ray.config.evaluation import LatencySection
from cleanai_ray.config.sections import ModelSection
from cleanai_ray.evaluation.latency import measure_latency
from cleanai_ray.evaluation.machine import device_name
from cleanai_ray.models import build_model, example_input, ignored_layers
from cleanai_ray.nn.complexity import measure_complexity


def parse_arguments(words: list[str]) -> argparse.Namespace:
    """Return the options; the defaults take a few minutes on one core."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["resnet18", "mobilenet_v2"])
    parser.add_argument("--input-shape", type=int, nargs=3, default=(3, 224, 224))
    parser.add_argument("--budget", type=float, default=0.5, help="largest share of the dense MACs")
    parser.add_argument(
        "--round-to", type=int, default=8, help="in a second pruned model, widths are multiples of this"
    )
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 32])
    parser.add_argument("--backends", nargs="+", default=["eager", "onnxruntime"])
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--warmup", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cuda:0" if torch.cuda.is_available() else "cpu")
    return parser.parse_args(words)


def rows(options: argparse.Namespace, name: str) -> Iterator[list[str]]:
    """Yield the rows of one network."""
    section = ModelSection(name=name, num_classes=1000, input_shape=tuple(options.input_shape))
    dense, example = build_model(section).eval(), example_input(section)
    macs = {"dense": measure_complexity(dense, example).macs}

    def pruned(budget: float, round_to: int | None) -> nn.Module:
        ignored = ignored_layers(section)
        wanted = {"macs": budget}
        result = cleanai.prune(
            dense, example, method="magnitude", budget=wanted, round_to=round_to, ignored_layers=ignored
        )
        return result.model

    # Rounded widths fall below the budget, so the other model gets the MACs of the rounded one: both cost the same.
    rounded = pruned(options.budget, options.round_to)
    share = measure_complexity(rounded, example).macs / macs["dense"]
    models = {"dense": dense, "any": pruned(share, None), f"multiples of {options.round_to}": rounded}
    macs |= {label: measure_complexity(model, example).macs for label, model in models.items()}
    timing = LatencySection(
        batch_sizes=tuple(options.batch_sizes),
        warmup=options.warmup,
        runs=options.runs,
        threads=options.threads,
        backends=tuple(options.backends),
    )
    measured = measure_latency(models, example, timing, device=options.device)
    milliseconds = {(row["backend"], row["batch_size"], row["variant"]): row["latency_ms_p50"] for row in measured}
    for row in measured:
        if row["variant"] != "dense":
            place = (row["backend"], row["batch_size"])
            yield [
                name,
                row["backend"],
                str(row["batch_size"]),
                row["variant"],
                f"{macs[row['variant']] / macs['dense']:.3f}",
                f"{macs['dense'] / macs[row['variant']]:.2f}",
                f"**{row['speedup']:.2f}** ({row['speedup_low']:.2f} to {row['speedup_high']:.2f})",
                f"{milliseconds[(*place, 'dense')]:.1f}",
                f"{row['latency_ms_p50']:.1f}",
            ]


def main(words: list[str]) -> None:
    """Print the table as Markdown, network by network."""
    options = parse_arguments(words)
    threads = f"{options.threads} thread{'' if options.threads == 1 else 's'}"
    print(f"{device_name(torch.device(options.device))}, {threads}, {options.runs} rounds")
    header = [
        "network",
        "back end",
        "batch",
        "widths",
        "MACs",
        "MACs say",
        "speed-up (95 %)",
        "dense, ms",
        "pruned, ms",
    ]
    print(f"\n| {' | '.join(header)} |\n|{'---|' * len(header)}")
    for name in options.models:
        for row in rows(options, name):
            print(f"| {' | '.join(row)} |", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
