"""The sensitivity analysis of a study's dense model."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import polars as pl
import yaml
from torch import nn

from cleanai_ray.config.study import Study, Trial
from cleanai_ray.errors import PruningError
from cleanai_ray.executors.chart_file import write_chart
from cleanai_ray.executors.context import DenseWeights, RunContext
from cleanai_ray.executors.dense import obtain_dense
from cleanai_ray.executors.measures import measure_dense
from cleanai_ray.executors.progress import ProgressReporter
from cleanai_ray.executors.run_study import RunOptions
from cleanai_ray.pruning.measurements import Measurements
from cleanai_ray.pruning.pruner import Pruner
from cleanai_ray.registry import EXECUTORS
from cleanai_ray.sensitivity.table import curve_rows, layer_ratios
from cleanai_ray.stages.dense_measures import DenseMeasures, measures_folder
from cleanai_ray.stages.multiple import known_multiple
from cleanai_ray.stages.workspace import Workspace
from cleanai_ray.storage import schemas
from cleanai_ray.storage.locking import locked
from cleanai_ray.storage.run_directory import RunDirectory

if TYPE_CHECKING:
    from altair.typing import ChartType

RATIOS_FILE, CHART_FILE = "layer_ratios.yaml", "charts/sensitivity.svg"


@dataclass(frozen=True, kw_only=True)
class Sensitivity:
    """The analysis.

    Attributes:
        table: A row per group and removal (`schemas.SENSITIVITY`).
        suggestions: For each amount (a ratio or budget of the study), the `pruning` keys that share it out over layers.
        refused: For each amount that cannot be shared out, the reason.
    """

    table: pl.DataFrame
    suggestions: dict[str, dict[str, Any]]
    refused: dict[str, str]


def analyse(
    study: Study, workspace: Workspace, run: RunDirectory, options: RunOptions, progress: ProgressReporter
) -> Sensitivity:
    """Measure sensitivity, or read it from the run directory, and write its table, layer_ratios.yaml and its chart.

    Args:
        study: The study; only the amounts of its sweep and its first draw of calibration samples matter.
        workspace: The study, opened in this process.
        run: The run directory.
        options: The options of the run.
        progress: Notified of the progress.
    """
    chooser = study = known_multiple(study, run)
    study = study.model_copy(
        update={"sweep": study.sweep.model_copy(update={"methods": ("reconstruction",), "method_options": {}})}
    )
    first = study.draws()[0]
    open_executor = EXECUTORS.get(options.executor)
    with locked(run), open_executor(study, run, options.address) as executor:
        context = RunContext(
            study=study.of_draw(first),
            workspace=replace(workspace, study=study.of_draw(first)),
            run=run,
            executor=executor,
            progress=progress,
            folder=measures_folder(study, first),
        )
        with progress.stage("dense model"):
            dense = obtain_dense(replace(context, study=study))
        weights = DenseWeights(content=executor.share(dense.weights), digest=dense.digest)
        measures = measure_dense(context, weights, chooser.of_draw(first))
    curves = measures.curves
    assert curves is not None
    table = schemas.to_table(curve_rows(curves), schemas.SENSITIVITY)
    run.write_table(schemas.SENSITIVITY_FILE, table)
    frame = pl.DataFrame(pl.from_arrow(table))
    suggestions, refused = _share_out(study, context.workspace, workspace.dense_model(dense.weights), measures)
    run.write_text(RATIOS_FILE, yaml.safe_dump(suggestions, sort_keys=False))
    write_chart(run, CHART_FILE, lambda: _draw(frame), progress)
    return Sensitivity(table=frame, suggestions=suggestions, refused=refused)


def _draw(frame: pl.DataFrame) -> ChartType | None:
    from cleanai_ray.charts import sensitivity

    return sensitivity.draw(frame)


def _share_out(
    study: Study, workspace: Workspace, model: nn.Module, measures: DenseMeasures
) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """Return, for every ratio and budget of a study, the layer ratios that meet it, or the reason why none do."""
    suggestions: dict[str, dict[str, Any]] = {}
    refused: dict[str, str] = {}
    for amount in (*study.sweep.ratios, *study.sweep.budgets):
        is_ratio = isinstance(amount, float)
        name = f"ratio {amount:g}" if is_ratio else str(amount)
        trial = Trial(method="reconstruction", mode="global", **{"ratio" if is_ratio else "budget": amount})
        own = measures.of(trial)
        try:
            pruner = Pruner(
                model,
                workspace.example_input(),
                trial,
                bounds=study.pruning.model_copy(update={"layer_ratios": {}}),
                ignored_layers=workspace.ignored_layers(),
                measured=Measurements(curves=own.curves, multiple=study.multiple),
                blocks=own.blocks.plans,
            )
            suggestions[name] = dict(layer_ratios(pruner.run().plan))
        except PruningError as error:
            refused[name] = str(error)
    return suggestions, refused


def describe(found: Sensitivity, run: RunDirectory) -> tuple[list[str], list[list[str]], list[str]]:
    """Return the analysis as headings, a row per group, and lines of text."""
    shares = (0.1, 0.3, 0.5, 0.7)
    headings = ["group", "channels", *(f"KL at {share:.0%}" for share in shares), "error at 50%"]
    rows = []
    for _, group in found.table.group_by("group", maintain_order=True):
        mark = "" if group["estimated"][0] is None else " *"
        cells = [f"{group['group'][0]}{mark}", str(group["num_channels"][0])]
        for share in shares:
            within = group.filter(pl.col("channel_ratio") <= share + 1e-9)
            cells.append("-" if within.is_empty() else f"{within['divergence'][-1]:.4f}")
        within = group.filter(pl.col("channel_ratio") <= 0.5)
        rows.append([*cells, "-" if within.is_empty() else f"{within['error'][-1]:.2%}"])
    lines = [
        "",
        "KL: mean divergence of the outputs from the dense model's, in nats, when this group alone is narrowed.",
        "error: relative squared error, after refitting, of the layers that read the group; the sum over those layers.",
    ]
    estimated = found.table.filter(pl.col("estimated").is_not_null()).unique("group", maintain_order=True)
    lines += [
        f"*: {row['group']} could not be measured, and is estimated from its neighbours: {row['estimated']}."
        for row in estimated.iter_rows(named=True)
    ]
    for amount, keys in found.suggestions.items():
        text = yaml.safe_dump({"pruning": keys}, width=100).rstrip()
        lines += ["", f"# {amount}, shared out by sensitivity:", *text.split("\n")]
    for amount, reason in found.refused.items():
        lines += ["", f"# {amount}: {reason}"]
    files = [name for name in (schemas.SENSITIVITY_FILE, RATIOS_FILE, CHART_FILE) if run.exists(name)]
    return headings, rows, [*lines, "", f"written to {run.location}: {', '.join(files)}"]
