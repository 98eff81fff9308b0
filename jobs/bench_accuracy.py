r"""A benchmark of the accuracy that each method keeps at a MACs budget, before and after each repair, without training.

For comparison, in the same process: torch-pruning's own pruner, with its ratio bisected to meet the same budget.

python jobs/bench_accuracy.py --weights ../shared/reference/resnet20_fashion_mnist.safetensors
python jobs/bench_accuracy.py --model mobilenet_v2 --weights w.safetensors --input-shape 3 224 224 \
    --data image_folder --root /data/images --num-classes 12 --split val --budgets 0.5

With --networks, the networks of study files, each trained by its study in several seeds: means over the seeds and their
95 % intervals, and how far each is from the dense network and from torch-pruning's own.

python jobs/bench_accuracy.py --networks jobs/studies/small_*_fashion_mnist.yaml --seeds 0 1 2 --weights-folder nets \
    --budgets 0.5 --methods reconstruction --modes global

With --draws, means over several draws of the calibration images, and with --repairs the columns to measure; those that
train take minutes each. --search N adds rows of reconstruction with a search for the allocation.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch_pruning as tp
from bench_options import accuracy_parser, study_sections
from scipy.stats import t as student
from torch import nn

import cleanai_ray as cleanai
from cleanai_ray.config.study import load_study, parse_study
from cleanai_ray.evaluation.accuracy import evaluate
from cleanai_ray.importance.base import create_method
from cleanai_ray.importance.curves import SensitivityCurves
from cleanai_ray.models import build_model
from cleanai_ray.nn.complexity import measure_complexity
from cleanai_ray.nn.weights import safetensors_bytes
from cleanai_ray.repair import RepairOptions, repair
from cleanai_ray.repair.batch_norm import apply_reset, collect_norm_sums
from cleanai_ray.stages.calibration import calibrate_locally
from cleanai_ray.stages.dense import prepare_dense
from cleanai_ray.stages.workspace import Workspace, open_workspace

# Columns of the table. The last one that is measured is compared with the dense network.
REPAIRS: dict[str, dict[str, Any]] = {
    "batch-norm": {"compensation": "none", "batch_norm": "relative"},
    "closed form": {"compensation": "closed_form", "batch_norm": "relative"},
    "sequential": {"compensation": "sequential", "batch_norm": "none"},
    "unfolded": {"compensation": "unfolded", "batch_norm": "none"},
    "auto": {},
    "block-wise": {"compensation": "blockwise", "batch_norm": "none"},
    "distilled": {"compensation": "unfolded", "batch_norm": "none", "distill_steps": 1500},
    "block-wise, distilled": {"compensation": "blockwise", "batch_norm": "none", "distill_steps": 1500},
}
QUICK = ["batch-norm", "closed form", "sequential", "unfolded", "auto"]
RAW, DENSE, PEER = "raw", "dense", "torch-pruning's own magnitude"
DEFAULT_METHODS = ["reconstruction", "coverage", "wanda", "magnitude", "taylor", "random"]
METRICS = ("normalized_mean", "frequency", "mean_absolute", "combined")


@dataclass(frozen=True, kw_only=True)
class Row:
    """A row of the table, as measured on one network.

    Attributes:
        budget: Share of the dense MACs.
        label: The method.
        mode: The mode; empty for the dense network.
        scores: Accuracy by column, `raw` and the names of `REPAIRS`; columns that do not apply are missing.
        note: The choice of `auto`, and how long the row took.
    """

    budget: float
    label: str
    mode: str
    scores: dict[str, float]
    note: str = ""

    @property
    def cell(self) -> tuple[float, str, str]:
        """Everything but the figures."""
        return self.budget, self.label, self.mode


def parse_arguments(words: list[str]) -> argparse.Namespace:
    """Return the options; the defaults are those of the reference ResNet-20 on Fashion-MNIST."""
    parser = accuracy_parser(__doc__, weights_required=False)
    parser.add_argument("--budgets", type=float, nargs="+", default=[0.7, 0.5, 0.3])
    parser.add_argument("--methods", nargs="+", default=DEFAULT_METHODS)
    parser.add_argument("--modes", nargs="+", default=["local", "global"])
    parser.add_argument("--networks", nargs="+", metavar="STUDY", help="study files whose networks to measure")
    parser.add_argument(
        "--seeds", type=int, nargs="+", default=[0, 1, 2], help="with --networks: seeds of the training"
    )
    parser.add_argument(
        "--weights-folder", default="artifacts/networks", help="with --networks: holds NAME-SEED.safetensors, or will"
    )
    parser.add_argument("--repairs", nargs="+", choices=list(REPAIRS), default=QUICK, help="columns to measure")
    parser.add_argument("--metrics", nargs="+", choices=list(METRICS), default=list(METRICS), help="those of coverage")
    parser.add_argument("--draws", type=int, nargs="+", default=[0], help="seeds of the calibration images")
    parser.add_argument("--search", type=int, default=0, help="allocations that reconstruction tries in further rows")
    options = parser.parse_args(words)
    if (options.weights is None) == (options.networks is None):
        parser.error("needed: --weights or --networks, and not both")
    return options


def open_study(options: argparse.Namespace, draw: int = 0) -> Workspace:
    """Open the model and the data set that the options name, with one draw of the calibration images."""
    sections = study_sections(options)
    sections["data"]["calibration"]["seed"] = draw
    return _opened(sections, options)


def _opened(sections: dict[str, Any], options: argparse.Namespace) -> Workspace:
    sweep = {"methods": options.methods, "coverage_metrics": options.metrics, "ratios": [0.5]}
    study = parse_study({**sections, "sweep": sweep})
    return open_workspace(study.model_dump_json(), options.device)


def open_network(file: str, seed: int, options: argparse.Namespace) -> Workspace:
    """Open a study with the weights of its network of a seed, which the study trains if there are none yet."""
    folder = Path(options.weights_folder)
    study = load_study(file, [f"model.train.seed={seed}"])
    weights = folder / f"{study.name}-{seed}.safetensors"
    if not weights.exists():
        folder.mkdir(parents=True, exist_ok=True)
        weights.write_bytes(prepare_dense(open_workspace(study.model_dump_json(), options.device)).weights)
    document = study.model_dump(mode="json", include={"model", "data", "evaluation"})
    document["model"] |= {"weights": str(weights), "train": None}
    document["evaluation"] |= {"samples": options.samples, "latency": None}
    document["data"]["calibration"]["samples"] = options.calibration
    return _opened(document, options)


def torch_pruning_alone(dense: nn.Module, workspace: Workspace, budget: float, *, is_global: bool) -> nn.Module:
    """Return a model pruned by torch-pruning's magnitude pruner to at most a MACs budget, as near to it as can be."""
    example = workspace.example_input()
    limit = budget * measure_complexity(dense, example).macs
    low, high = 0.0, 0.95
    best: nn.Module | None = None
    for _ in range(12):
        ratio = (low + high) / 2
        model = workspace.dense_model(safetensors_bytes(dense))
        ignored = [model.get_submodule(name) for name in workspace.ignored_layers()]
        heads = {part: part.num_heads for part in model.modules() if isinstance(part, nn.MultiheadAttention)}
        pruner = tp.pruner.BasePruner(
            model,
            example,
            importance=tp.importance.GroupMagnitudeImportance(p=2),
            pruning_ratio=ratio,
            max_pruning_ratio=0.9,
            global_pruning=is_global,
            ignored_layers=ignored,
            in_channel_groups={},
            out_channel_groups=heads,
            num_heads={},
            channel_groups={},
        )
        pruner.step()
        if hasattr(model, "class_token"):  # torchvision's vision transformer repeats a width
            model.hidden_dim = model.get_parameter("class_token").shape[-1]  # type: ignore[assignment]
        if measure_complexity(model, example).macs <= limit:
            best, high = model, ratio
        else:
            low = ratio
    assert best is not None
    return best


def measured(options: argparse.Namespace, workspace: Workspace) -> Iterator[Row]:
    """Yield the rows of the table as they are measured."""
    dense = build_model(workspace.study.model).to(workspace.device).eval()
    activations = calibrate_locally(workspace, dense)
    batches = list(workspace.batches("calibration"))
    example, ignored = workspace.example_input(), workspace.ignored_layers()
    curves: SensitivityCurves | None = None
    if any(create_method(name).needs_curves for name in options.methods):
        curves = cleanai.measure_sensitivity(dense, example, batches, ignored_layers=ignored)

    def score(model: nn.Module) -> float:
        return evaluate(model, workspace.batches("evaluation"), device=workspace.device).accuracy

    yield Row(budget=1.0, label=DENSE, mode="", scores={RAW: score(dense)})
    for budget in options.budgets:
        for mode in options.modes:
            model = torch_pruning_alone(dense, workspace, budget, is_global=mode == "global")
            scores = {RAW: score(model)}
            if sums := collect_norm_sums(model, batches):
                apply_reset(model, sums)
                scores["batch-norm"] = score(model)
            yield Row(budget=budget, label=PEER, mode=mode, scores=scores)
        for method, metric, mode, search in cells(options):
            started = time.monotonic()
            result = cleanai.prune(
                dense,
                example,
                method=method,
                coverage_metric=metric,
                mode=mode,
                budget={"macs": budget},
                batches=batches if search else None,
                method_options={"search": search} if search else None,
                stats=activations,
                curves=curves,
                ignored_layers=ignored,
            )
            scores, chosen = {RAW: score(result.model)}, []
            for name in options.repairs:
                outcome = repair(dense, result, batches, RepairOptions(**REPAIRS[name]))
                scores[name] = score(outcome.model)
                if name == "auto":
                    chosen = [f"{outcome.chosen['compensation']} + {outcome.chosen['batch_norm']}"]
            label = f"{method}/{metric}" if metric else f"{method}, search {search}" if search else method
            note = ", ".join([*chosen, f"{time.monotonic() - started:.0f} s"])
            yield Row(budget=budget, label=label, mode=mode, scores=scores, note=note)


def over_seeds(options: argparse.Namespace, file: str) -> Iterator[list[str]]:
    """Yield the rows of one network: means over its seeds, each with its 95 % interval."""
    return averaged(options, (measured(options, open_network(file, seed, options)) for seed in options.seeds))


def averaged(options: argparse.Namespace, runs: Iterable[Iterable[Row]]) -> Iterator[list[str]]:
    """Yield the rows of several runs as one table: means, each with its 95 % interval over the runs."""
    found: dict[tuple[float, str, str], list[dict[str, float]]] = {}
    for run in runs:
        for row in run:
            found.setdefault(row.cell, []).append(row.scores)
    dense = found[1.0, DENSE, ""]
    for (budget, label, mode), scores in found.items():
        names = (RAW, *options.repairs)
        columns = [mean_interval([one[name] for one in scores]) if name in scores[0] else "" for name in names]
        last = [name for name in names if name in scores[0]][-1]
        losses = [one[last] - whole[RAW] for one, whole in zip(scores, dense, strict=True)]
        note = "" if label == DENSE else f"{last}: {100 * sum(losses) / len(losses):+.2f} points to dense"
        yield [f"{budget}", label, mode, *columns, note]


def mean_interval(values: Sequence[float]) -> str:
    """Return the mean of shares, and half of its 95 % interval by Student's t, in percent."""
    number, middle = len(values), statistics.fmean(values)
    if number == 1:
        return f"{middle:.2%}"
    half = float(student.ppf(0.975, number - 1)) * statistics.stdev(values) / number**0.5
    return f"{middle:.2%} ± {100 * half:.2f}"


def cells(options: argparse.Namespace) -> Iterator[tuple[str, str | None, str, int]]:
    """Yield method, coverage metric, mode and number of allocations to try of each row."""
    for method in options.methods:
        searches = (0, options.search) if method == "reconstruction" and options.search else (0,)
        for metric in options.metrics if method == "coverage" else (None,):
            for mode in options.modes:
                yield from ((method, metric, mode, search) for search in searches)


def main(words: list[str]) -> None:
    """Print the table as Markdown, row by row."""
    options = parse_arguments(words)
    if options.networks is not None:
        for file in options.networks:
            print(f"\n{Path(file).stem}, seeds {', '.join(map(str, options.seeds))}, mean and 95 % interval over them")
            print_table(options, over_seeds(options, file), "last column, difference to dense")
        return
    workspace = open_study(options, options.draws[0])
    scored, used = len(workspace.roles.evaluation), len(workspace.roles.calibration)
    print(
        f"{options.model}, {options.data}: {scored} images scored, {used} unlabelled images to calibrate, no training"
    )
    if len(options.draws) > 1:
        runs = (measured(options, open_study(options, draw)) for draw in options.draws)
        print_table(options, averaged(options, runs), "last column, difference to dense")
        return
    rows = (_texts(options, row) for row in measured(options, workspace))
    print_table(options, rows, "auto's choice, time of the row")


def _texts(options: argparse.Namespace, row: Row) -> list[str]:
    columns = [f"{row.scores[name]:.2%}" if name in row.scores else "" for name in (RAW, *options.repairs)]
    return [f"{row.budget}", row.label, row.mode, *columns, row.note]


def print_table(options: argparse.Namespace, rows: Iterable[list[str]], note: str) -> None:
    """Print rows as Markdown, as they come."""
    header = ["MACs", "method", "mode", RAW, *options.repairs, note]
    print(f"\n| {' | '.join(header)} |\n|{'---|' * len(header)}")
    for row in rows:
        print(f"| {' | '.join(row)} |", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
