r"""A benchmark of the accuracy that each method keeps at a MACs budget, before and after each repair, without training.

For comparison, in the same process: torch-pruning's own pruner, with its ratio bisected to meet the same budget.

python jobs/bench_accuracy.py --weights ../shared/reference/resnet20_fashion_mnist.safetensors
python jobs/bench_accuracy.py --model mobilenet_v2 --weights w.safetensors --input-shape 3 224 224 \
    --data image_folder --root /data/images --num-classes 12 --split val --budgets 0.5
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from typing import Any

import torch_pruning as tp
from bench_options import accuracy_parser, study_sections
from torch import nn

import cleanai_ray as cleanai
from cleanai_ray.config.study import parse_study
from cleanai_ray.evaluation.accuracy import evaluate
from cleanai_ray.importance.base import create_method
from cleanai_ray.importance.curves import SensitivityCurves
from cleanai_ray.models import build_model
from cleanai_ray.nn.complexity import measure_complexity
from cleanai_ray.nn.weights import safetensors_bytes
from cleanai_ray.repair import RepairOptions, repair
from cleanai_ray.stages.calibration import calibrate_locally
from cleanai_ray.stages.workspace import Workspace, open_workspace

# Columns of the table: compensation and batch-norm recalibration.
REPAIRS = {
    "batch-norm": ("none", "relative"),
    "closed form": ("closed_form", "relative"),
    "sequential": ("sequential", "relative"),
    "auto": ("auto", "auto"),
}
DEFAULT_METHODS = ["reconstruction", "coverage", "wanda", "magnitude", "taylor", "random"]
METRICS = ("normalized_mean", "frequency", "mean_absolute", "combined")


def parse_arguments(words: list[str]) -> argparse.Namespace:
    """Return the options; the defaults are those of the reference ResNet-20 on Fashion-MNIST."""
    parser = accuracy_parser(__doc__)
    parser.add_argument("--budgets", type=float, nargs="+", default=[0.7, 0.5, 0.3])
    parser.add_argument("--methods", nargs="+", default=DEFAULT_METHODS)
    parser.add_argument("--modes", nargs="+", default=["local", "global"])
    return parser.parse_args(words)


def open_study(options: argparse.Namespace) -> Workspace:
    """Open the model and the data set that the options name."""
    study = parse_study(
        {
            **study_sections(options),
            "sweep": {"methods": options.methods, "coverage_metrics": list(METRICS), "ratios": [0.5]},
        }
    )
    return open_workspace(study.model_dump_json(), options.device)


def torch_pruning_alone(dense: nn.Module, workspace: Workspace, budget: float, *, is_global: bool) -> nn.Module:
    """Return a model pruned by torch-pruning's magnitude pruner to at most a MACs budget, as near to it as can be."""
    example = workspace.example_input()
    limit = budget * measure_complexity(dense, example).macs
    low, high = 0.0, 0.95
    best: nn.Module | None = None
    for _ in range(12):
        ratio = (low + high) / 2
        model = workspace.dense_model(weights_of(dense))
        ignored = [model.get_submodule(name) for name in workspace.ignored_layers()]
        pruner = tp.pruner.BasePruner(
            model,
            example,
            importance=tp.importance.GroupMagnitudeImportance(p=2),
            pruning_ratio=ratio,
            max_pruning_ratio=0.9,
            global_pruning=is_global,
            ignored_layers=ignored,
            in_channel_groups={},
            out_channel_groups={},
            num_heads={},
            channel_groups={},
        )
        pruner.step()
        if measure_complexity(model, example).macs <= limit:
            best, high = model, ratio
        else:
            low = ratio
    assert best is not None
    return best


def weights_of(model: nn.Module) -> bytes:
    """Return a model's weights as the content of a safetensors file."""
    return safetensors_bytes(model)


def rows(options: argparse.Namespace, workspace: Workspace) -> Iterator[list[str]]:
    """Yield the rows of the table as they are measured."""
    dense = build_model(workspace.study.model).to(workspace.device).eval()
    statistics = calibrate_locally(workspace, dense)
    batches = list(workspace.batches("calibration"))
    example, ignored = workspace.example_input(), workspace.ignored_layers()
    curves: SensitivityCurves | None = None
    if any(create_method(name).needs_curves for name in options.methods):
        curves = cleanai.measure_sensitivity(dense, example, batches, ignored_layers=ignored)

    def score(model: nn.Module) -> str:
        return f"{evaluate(model, workspace.batches('evaluation'), device=workspace.device).accuracy:.2%}"

    yield ["1.0", "dense", "", score(dense), *["" for _ in REPAIRS], ""]
    for budget in options.budgets:
        for mode in options.modes:
            model = torch_pruning_alone(dense, workspace, budget, is_global=mode == "global")
            yield [f"{budget}", "torch-pruning's own magnitude", mode, score(model), *["" for _ in REPAIRS], ""]
        for method, metric, mode in cells(options):
            started = time.monotonic()
            result = cleanai.prune(
                dense,
                example,
                method=method,
                coverage_metric=metric,
                mode=mode,
                budget={"macs": budget},
                stats=statistics,
                curves=curves,
                ignored_layers=ignored,
            )
            columns = [score(result.model)]
            chosen: dict[str, Any] = {}
            for compensation, batch_norm in REPAIRS.values():
                outcome = repair(
                    dense, result, batches, RepairOptions(compensation=compensation, batch_norm=batch_norm)
                )
                columns.append(score(outcome.model))
                chosen = outcome.chosen
            label = f"{method}/{metric}" if metric else method
            note = f"{chosen['compensation']} + {chosen['batch_norm']}, {time.monotonic() - started:.0f} s"
            yield [f"{budget}", label, mode, *columns, note]


def cells(options: argparse.Namespace) -> Iterator[tuple[str, str | None, str]]:
    """Yield method, coverage metric and mode of each row."""
    for method in options.methods:
        for metric in METRICS if method == "coverage" else (None,):
            for mode in options.modes:
                yield method, metric, mode


def main(words: list[str]) -> None:
    """Print the table as Markdown, row by row."""
    options = parse_arguments(words)
    workspace = open_study(options)
    scored, used = len(workspace.roles.evaluation), len(workspace.roles.calibration)
    print(
        f"{options.model}, {options.data}: {scored} images scored, {used} unlabelled images to calibrate, no training"
    )
    header = ["MACs", "method", "mode", "raw", *REPAIRS, "auto's choice, time of the row"]
    print(f"\n| {' | '.join(header)} |\n|{'---|' * len(header)}")
    for row in rows(options, workspace):
        print(f"| {' | '.join(row)} |", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
