r"""A benchmark of fine-tuning at a MACs budget: accuracy raw, repaired, and then fine-tuned by up to three recipes.

`labels` and `distillation` learn from the training images; `unlabelled` learns by distillation alone from the
calibration images. All images of the evaluation split are scored. The best epoch is chosen on images held back from
those that training learns from, never on images that are scored.

python jobs/bench_finetune.py --weights ../shared/reference/resnet20_fashion_mnist.safetensors
python jobs/bench_finetune.py --weights ../shared/reference/resnet20_fashion_mnist.safetensors \
    --budget 0.3 --epochs 5 --methods reconstruction --recipes labels --no-control --set finetune.learning_rate=0.03
"""

from __future__ import annotations

import argparse
import copy
import sys
import time
from collections.abc import Iterator
from typing import Any

import torch
from bench_options import accuracy_parser, study_sections

import cleanai_ray as cleanai
from cleanai_ray.config.study import Study, Trial, parse_study
from cleanai_ray.evaluation.accuracy import evaluate
from cleanai_ray.importance.base import create_method
from cleanai_ray.models import build_model
from cleanai_ray.registry import METHODS
from cleanai_ray.repair import RepairOptions, repair
from cleanai_ray.stages.calibration import calibrate_locally
from cleanai_ray.stages.finetune import fine_tune_part
from cleanai_ray.stages.workspace import Workspace, open_workspace
from cleanai_ray.training.context import LocalContext

RECIPE = (
    "data.validation_fraction=0.02",
    "data.options={crop_padding: 0, flip: false}",
    "data.calibration.withhold_from_training=false",
    "finetune.learning_rate=0.02",
    "finetune.batch_size=64",
)
"""Settings for one epoch of a nearly trained network: a low rate, many steps, images as in scoring."""

HEADINGS = {"labels": "fine-tuned", "distillation": "with distillation", "unlabelled": "without labels"}
"""The column of each recipe."""


def parse_arguments(words: list[str]) -> argparse.Namespace:
    """Return the options; the defaults are those of the reference ResNet-20 on Fashion-MNIST."""
    parser = accuracy_parser(__doc__)
    parser.add_argument("--budget", type=float, default=0.5)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--methods", nargs="+", default=METHODS.names())
    parser.add_argument("--mode", default="local")
    parser.add_argument("--temperature", type=float, default=4.0, help="temperature of the distillation")
    parser.add_argument(
        "--weight", type=float, default=0.9, help="weight of the distillation; the labels have the rest"
    )
    parser.add_argument("--recipes", nargs="+", choices=HEADINGS, default=list(HEADINGS))
    parser.add_argument("--unlabelled-epochs", type=int, default=10, help="epochs over the few unlabelled images")
    parser.add_argument(
        "--control", action=argparse.BooleanOptionalAction, default=True, help="also train the dense one"
    )
    parser.add_argument("--set", action="append", default=[], help="a key of the study: finetune.learning_rate=0.05")
    return parser.parse_args(words)


def study_of(options: argparse.Namespace, recipe: str) -> Study:
    """Return the study that the options describe, with one trial per method."""
    finetune: dict[str, Any] = {"epochs": options.epochs}
    if recipe == "distillation":
        finetune["distillation"] = {"temperature": options.temperature, "weight": options.weight}
    if recipe == "unlabelled":
        distillation = {"temperature": options.temperature, "weight": 1.0}
        finetune = {"epochs": options.unlabelled_epochs, "data": "calibration", "distillation": distillation}
    return parse_study(
        {
            **study_sections(options),
            "sweep": {"methods": options.methods, "budgets": [{"macs": options.budget}], "modes": [options.mode]},
            "finetune": finetune,
        },
        [*RECIPE, *options.set],
    )


def open_workspaces(options: argparse.Namespace) -> dict[str, Workspace]:
    """Return the study opened with each chosen recipe, by the heading of its column."""
    studies = {HEADINGS[recipe]: study_of(options, recipe) for recipe in options.recipes}
    return {name: open_workspace(study.model_dump_json(), str(options.device)) for name, study in studies.items()}


def rows(options: argparse.Namespace) -> Iterator[list[str]]:
    """Yield the rows of the table as they are measured."""
    workspaces = open_workspaces(options)
    workspace = next(iter(workspaces.values()))
    dense = build_model(workspace.study.model).to(workspace.device).eval()
    statistics = calibrate_locally(workspace, dense)
    batches = list(workspace.batches("calibration"))
    example, ignored = workspace.example_input(), workspace.ignored_layers()
    curves = None
    if any(create_method(name).needs_curves for name in options.methods):
        curves = cleanai.measure_sensitivity(dense, example, batches, ignored_layers=ignored)

    def score(model: torch.nn.Module) -> str:
        return f"{evaluate(model, workspace.batches('evaluation'), device=workspace.device).accuracy:.2%}"

    def fine_tuned(opened: Workspace, trial: Trial, start: torch.nn.Module) -> str:
        model = copy.deepcopy(start)
        fine_tune_part(opened, trial, model, dense, LocalContext(device=workspace.device))
        return score(model)

    yield ["method", "raw", "repaired (auto)", *workspaces, "time of the row"]
    labelled = workspaces.get(HEADINGS["labels"])
    if options.control and labelled is not None:
        started = time.monotonic()
        # The same training improves the dense network, too; without this row, that gain would pass for recovery.
        control = fine_tuned(labelled, labelled.study.trials()[0], dense)
        columns = [control if opened is labelled else "" for opened in workspaces.values()]
        yield ["dense", score(dense), "", *columns, f"{time.monotonic() - started:.0f} s"]
    for trial in workspace.study.trials():
        started = time.monotonic()
        result = cleanai.prune(
            dense,
            example,
            method=trial.method,
            coverage_metric=trial.coverage_metric,
            mode=trial.mode,
            budget={"macs": options.budget},
            stats=statistics,
            curves=curves,
            ignored_layers=ignored,
        )
        repaired = repair(dense, result, batches, RepairOptions(compensation="auto", batch_norm="auto")).model
        columns = [fine_tuned(opened, trial, repaired) for opened in workspaces.values()]
        yield [trial.method, score(result.model), score(repaired), *columns, f"{time.monotonic() - started:.0f} s"]


def main(words: list[str]) -> None:
    """Print the table as Markdown, row by row."""
    options = parse_arguments(words)
    print(
        f"{options.model}, {options.data}, MACs {options.budget:g}, {options.mode}, {options.epochs} epoch(s), "
        f"{options.calibration} unlabelled images to calibrate; {', '.join([*RECIPE, *options.set])}\n"
    )
    for number, row in enumerate(rows(options)):
        rule = f"\n|{'---|' * len(row)}" if number == 0 else ""
        print(f"| {' | '.join(row)} |{rule}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
