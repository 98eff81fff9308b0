r"""A benchmark of latency budgets: requested, predicted and reached, beside models of the same MACs.

For every network, target and budget: a profile is measured, the budget is met by what it predicts, and the result takes
turns, for three seconds or more, with the dense model and with two of the same MACs, whose groups all narrow alike by
the magnitude of weights (which is torch-pruning's magnitude pruner, as a test proves): with any widths, and with
multiples of 8. One thread of a CPU is timed without what other processes take. With --macs, no profile is measured:
networks are pruned by `magnitude` to shares of their MACs, with the default widths and with any. Networks have random
weights, on which time does not depend; KL is that of the outputs on noise, and says little without training.

python jobs/bench_latency.py
python jobs/bench_latency.py --networks resnet50 --budgets 0.7 0.5 --backends torch onnxruntime --batch-sizes 1 32
python jobs/bench_latency.py --macs 0.5 --networks resnet18 resnet50 mobilenet_v2 efficientnet_b0 vit_b_16 \
    --backends torch onnxruntime
python jobs/bench_latency.py --networks resnet50 --backends cuda_graph --dtype float16 --layout channels_last \
    --batch-sizes 64 --device cuda:0
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

import cleanai_ray as cleanai
from cleanai_ray.config.evaluation import LatencySection
from cleanai_ray.config.sections import ModelSection
from cleanai_ray.config.target import TargetSection
from cleanai_ray.errors import CleanAIError
from cleanai_ray.evaluation.machine import device_name
from cleanai_ray.evaluation.target_latency import time_in_target
from cleanai_ray.models import build_model, example_input, ignored_layers
from cleanai_ray.nn.complexity import measure_complexity

HEADER = ("network", "target", "budget", "model", "MACs", "predicted", "reached", "speed-up (95 %)", "ms", "KL")
NUM_IMAGES = 8
_LEAST_MS = 3000.0


def parse_arguments(words: list[str]) -> argparse.Namespace:
    """Return the options; the defaults take some ten minutes on one core."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=["resnet18", "mobilenet_v2"])
    parser.add_argument("--budgets", type=float, nargs="+", default=[0.6], help="shares of the dense latency")
    parser.add_argument("--macs", type=float, nargs="+", help="shares of the dense MACs, instead of --budgets")
    parser.add_argument("--backends", nargs="+", default=["onnxruntime"], help="of evaluation.target")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1])
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--layout", default="contiguous")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--method", default="magnitude", help="one that reads no images")
    parser.add_argument("--repeats", type=int, default=1, help="times that each budget is met, with a profile each")
    parser.add_argument("--input-shape", type=int, nargs=3, default=(3, 224, 224))
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--warmup", type=int, default=3)
    parser.add_argument("--device", default="cuda:0" if torch.cuda.is_available() else "cpu")
    return parser.parse_args(words)


class Bench:
    """The models of one network in one target.

    Args:
        options: The options.
        name: The network.
        target: The target.
    """

    def __init__(self, options: argparse.Namespace, name: str, target: TargetSection) -> None:
        section = ModelSection(name=name, num_classes=1000, input_shape=tuple(options.input_shape))
        self.options, self.name, self.target = options, name, target
        self.dense = build_model(section, seed=0).eval().to(options.device)
        self.example = example_input(section).to(options.device)
        self.often = {"runs": options.runs, "warmup": options.warmup}
        self.given: dict[str, Any] = {
            "target": target.model_dump(),
            "latency": self.often,
            "ignored_layers": ignored_layers(section),
        }

    def rows(self) -> Iterator[list[str]]:
        """Yield the rows of all budgets, or one that says why there are none."""
        for _ in range(self.options.repeats):
            profile = cleanai.latency_profile(self.dense, self.example, round_to="auto", **self.given)
            for budget in self.options.budgets:
                try:
                    found = cleanai.prune(
                        self.dense,
                        self.example,
                        method=self.options.method,
                        budget={"latency": budget},
                        round_to="auto",
                        profile=profile,
                        **self.given,
                    )
                except CleanAIError as error:
                    yield [self.name, self.target.label, f"{budget:g}", str(error), *[""] * 6]
                    continue
                predicted = found.plan.achieved["latency"]["predicted_ratio"]
                yield from self._beside(budget, found.model, float(predicted))

    def rows_at_macs(self, share: float) -> Iterator[list[str]]:
        """Yield the rows of a network that is pruned to a share of its MACs, with the default widths and with any."""
        models = {label: self._magnitude(share, width) for label, width in (("default", "auto"), ("any widths", None))}
        yield from self._timed(f"{share:g} of the MACs", models)

    def _beside(self, budget: float, ours: nn.Module, predicted: float) -> Iterator[list[str]]:
        """Yield the rows of a model and of those with as many MACs, timed in turns."""
        share = self._macs(ours)
        models = {
            "ours": ours,
            "magnitude, any widths": self._magnitude(share, None),
            "magnitude, multiples of 8": self._magnitude(share, 8),
        }
        yield from self._timed(f"{budget:g}", models, f"{predicted:.3f}")

    def _magnitude(self, share: float, round_to: int | str | None) -> nn.Module:
        return cleanai.prune(
            self.dense,
            self.example,
            method="magnitude",
            budget={"macs": share},
            round_to=round_to,
            target=self.given["target"],
            ignored_layers=self.given["ignored_layers"],
        ).model

    def _timed(self, budget: str, models: dict[str, nn.Module], predicted: str = "") -> Iterator[list[str]]:
        """Yield a row per model; all are timed in turns with the dense one."""
        models = {"dense": self.dense, **models}
        section = LatencySection.model_validate(self.often)
        device = self.options.device
        times = time_in_target(
            models, self.example, self.target, section, device=device, quick=True, least_ms=_LEAST_MS
        )
        timings = times.timings
        for label, timing in timings.items():
            if timing.speedup is None:
                continue
            yield [
                self.name,
                self.target.label,
                budget,
                label,
                f"{self._macs(models[label]):.3f}",
                predicted if label == "ours" else "",
                f"{1 / timing.speedup:.3f}",
                f"**{timing.speedup:.2f}** ({timing.speedup_low:.2f} to {timing.speedup_high:.2f})",
                f"{timing.p50:.2f} of {timings['dense'].p50:.2f}",
                f"{divergence(self.dense, models[label], self.example):.3g}",
            ]

    def _macs(self, model: nn.Module) -> float:
        return measure_complexity(model, self.example).macs / measure_complexity(self.dense, self.example).macs


@torch.inference_mode()
def divergence(dense: nn.Module, pruned: nn.Module, example: Tensor) -> float:
    """Return the mean KL(dense || pruned) of the outputs on noise, in nats."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn((NUM_IMAGES, *example.shape[1:]), generator=generator).to(example.device)
    logs = [functional.log_softmax(model.eval()(images).double(), dim=1) for model in (dense, pruned)]
    return float(functional.kl_div(logs[1], logs[0], log_target=True, reduction="batchmean"))


def main(words: list[str]) -> None:
    """Print the table as Markdown, row by row."""
    options = parse_arguments(words)
    print(f"{device_name(torch.device(options.device))}, {options.runs} rounds, load {os.getloadavg()[0]:.1f}")
    print(f"\n| {' | '.join(HEADER)} |\n|{'---|' * len(HEADER)}")
    for backend in options.backends:
        for batch_size in options.batch_sizes:
            target = TargetSection(
                backend=backend,
                dtype=options.dtype,
                layout=options.layout,
                batch_size=batch_size,
                threads=options.threads,
            )
            for name in options.networks:
                bench = Bench(options, name, target)
                rows = chain(*map(bench.rows_at_macs, options.macs)) if options.macs else bench.rows()
                for row in rows:
                    print(f"| {' | '.join(row)} |", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
