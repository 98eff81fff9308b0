r"""A benchmark of what a network still computes at equal latency: ours, and torch-pruning's magnitude.

Ours: `reconstruction` to a latency budget, repaired without labels. The peer: torch-pruning's magnitude pruner with
round_to=8 at many ratios, batch-norm recalibrated on the same images; of these, the one counts whose measured time is
next to ours, at least as long as ours, so that whatever is left of a difference in time is to its advantage. All models
are timed in turns. KL(dense || pruned) and accuracy are those of images that nothing was chosen on.

python jobs/bench_equal_latency.py --weights ../shared/reference/resnet20_fashion_mnist.safetensors
python jobs/bench_equal_latency.py --network jobs/studies/small_mobilenet_v2_fashion_mnist.yaml --weights-folder nets
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from typing import Any

import bench_accuracy
import torch
import torch_pruning as tp
from bench_options import accuracy_parser
from torch import nn
from torch.nn import functional

import cleanai_ray as cleanai
from cleanai_ray.config.evaluation import LatencySection
from cleanai_ray.config.target import TargetSection
from cleanai_ray.evaluation.accuracy import evaluate
from cleanai_ray.evaluation.machine import device_name
from cleanai_ray.evaluation.rounds import DENSE, Timing
from cleanai_ray.evaluation.target_latency import time_in_target
from cleanai_ray.models import build_model
from cleanai_ray.nn.weights import safetensors_bytes
from cleanai_ray.repair.batch_norm import apply_reset, collect_norm_sums
from cleanai_ray.stages.workspace import Workspace

HEADER = ("latency asked", "model", "latency reached", "ms", "KL to dense", "accuracy")
OURS, PEER = "reconstruction, repaired", "torch-pruning, magnitude, round_to=8, batch-norm recalibrated"
MULTIPLE = 8


def parse_arguments(words: list[str]) -> argparse.Namespace:
    """Return the options; the defaults are those of the reference ResNet-20 on Fashion-MNIST."""
    parser = accuracy_parser(__doc__, weights_required=False)
    parser.add_argument("--network", help="a study file whose network to measure, instead of --weights")
    parser.add_argument("--seed", type=int, default=0, help="with --network: seed of the training")
    parser.add_argument("--weights-folder", default="artifacts/networks", help="with --network: as bench_accuracy's")
    parser.add_argument("--budgets", type=float, nargs="+", default=[0.7, 0.5], help="shares of the dense latency")
    parser.add_argument("--backend", default="onnxruntime", help="of evaluation.target")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--compensation", default="auto", help="of repair")
    parser.add_argument("--ratios", type=int, default=24, help="ratios of the peer, evenly spaced up to 0.9")
    parser.add_argument("--runs", type=int, default=30)
    options = parser.parse_args(words)
    if (options.weights is None) == (options.network is None):
        parser.error("needed: --weights or --network, and not both")
    options.methods = ["reconstruction"]
    return options


class Bench:
    """One network in one target.

    Args:
        options: The options.
        workspace: The network's study.
    """

    def __init__(self, options: argparse.Namespace, workspace: Workspace) -> None:
        self.options, self.workspace = options, workspace
        self.dense = build_model(workspace.study.model).to(workspace.device).eval()
        self.example, self.ignored = workspace.example_input(), workspace.ignored_layers()
        self.batches = list(workspace.batches("calibration"))
        self.target = TargetSection(backend=options.backend, batch_size=options.batch_size)
        self.often = {"runs": options.runs, "warmup": 3}

    def rows(self) -> Iterator[list[str]]:
        """Yield the rows of all budgets."""
        peers = {f"ratio {ratio:.3f}": self.peer(ratio) for ratio in self._ratios()}
        given: dict[str, Any] = {
            "target": self.target.model_dump(),
            "latency": self.often,
            "ignored_layers": self.ignored,
        }
        profile = cleanai.latency_profile(self.dense, self.example, round_to="auto", **given)
        curves = cleanai.measure_sensitivity(self.dense, self.example, self.batches, ignored_layers=self.ignored)
        for budget in self.options.budgets:
            ours = cleanai.prune(
                self.dense,
                self.example,
                self.batches,
                method="reconstruction",
                mode="global",
                budget={"latency": budget},
                curves=curves,
                profile=profile,
                repair={"compensation": self.options.compensation},
                **given,
            ).model
            timings = self._times({DENSE: self.dense, OURS: ours, **peers})
            peer = next_slower(timings)
            for label, model, name in ((OURS, ours, OURS), (f"{PEER}, {peer}", peers[peer], peer)):
                yield [f"{budget:g}", label, *self._told(timings, name), *self._scored(model)]

    def peer(self, ratio: float) -> nn.Module:
        """Return torch-pruning's model, its batch-norm recalibrated on the calibration images."""
        model = self.workspace.dense_model(safetensors_bytes(self.dense)).eval()
        pruner = tp.pruner.BasePruner(
            model,
            self.example,
            importance=tp.importance.GroupMagnitudeImportance(p=2),
            pruning_ratio=ratio,
            ignored_layers=[model.get_submodule(name) for name in self.ignored],
            round_to=MULTIPLE,
        )
        pruner.step()
        if sums := collect_norm_sums(model, self.batches):
            apply_reset(model, sums)
        return model.eval()

    def _ratios(self) -> list[float]:
        return [0.9 * (index + 1) / self.options.ratios for index in range(self.options.ratios)]

    def _times(self, models: dict[str, nn.Module]) -> dict[str, Timing]:
        section = LatencySection.model_validate(self.often)
        device = self.workspace.device
        return dict(time_in_target(models, self.example, self.target, section, device=device, quick=True).timings)

    @staticmethod
    def _told(timings: dict[str, Timing], name: str) -> list[str]:
        timing, dense = timings[name], timings[DENSE]
        return [f"{timing.p50 / dense.p50:.3f}", f"{timing.p50:.3f} of {dense.p50:.3f}"]

    @torch.inference_mode()
    def _scored(self, model: nn.Module) -> list[str]:
        """Return KL to dense and the accuracy on the evaluation images."""
        total, count = 0.0, 0
        for images, _ in self.workspace.batches("evaluation"):
            logs = [functional.log_softmax(one(images).double(), dim=1) for one in (model, self.dense)]
            total += float(functional.kl_div(logs[0], logs[1], log_target=True, reduction="sum"))
            count += len(images)
        accuracy = evaluate(model, self.workspace.batches("evaluation"), device=self.workspace.device).accuracy
        return [f"{total / count:.4f}", f"{accuracy:.2%}"]


def next_slower(timings: dict[str, Timing]) -> str:
    """Return the peer that takes at least as long as ours, by the least; the slowest one if none does."""
    peers = {name: timing.p50 for name, timing in timings.items() if name not in (DENSE, OURS)}
    slower = {name: time for name, time in peers.items() if time >= timings[OURS].p50}
    return min(slower, key=slower.__getitem__) if slower else max(peers, key=peers.__getitem__)


def main(words: list[str]) -> None:
    """Print the table as Markdown, row by row."""
    options = parse_arguments(words)
    if options.network is not None:
        workspace = bench_accuracy.open_network(options.network, options.seed, options)
    else:
        workspace = bench_accuracy.open_study(options)
    bench = Bench(options, workspace)
    scored, used = len(workspace.roles.evaluation), len(workspace.roles.calibration)
    print(f"{workspace.study.model.name} in {bench.target.label}, {device_name(torch.device(options.device))}")
    print(f"{used} unlabelled images to prune and repair, {scored} others scored")
    print(f"\n| {' | '.join(HEADER)} |\n|{'---|' * len(HEADER)}")
    for row in bench.rows():
        print(f"| {' | '.join(row)} |", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
