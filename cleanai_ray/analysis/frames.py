"""The tables of a run directory as polars frames, from which charts and reports are made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import polars as pl
import pyarrow as pa
import yaml

from cleanai_ray.analysis.near_chance import is_broken
from cleanai_ray.analysis.numbers import amount_text
from cleanai_ray.analysis.speed import target_of, with_speed
from cleanai_ray.errors import ArtifactError
from cleanai_ray.storage import schemas
from cleanai_ray.storage.image_schemas import CORRECT, CORRECT_FILE, IMAGES, IMAGES_FILE
from cleanai_ray.storage.ranking import ORDER
from cleanai_ray.storage.run_directory import RunDirectory

if TYPE_CHECKING:
    from cleanai_ray.analysis.chosen import Choice

WITHOUT_DATA = ("bn_scale", "fpgm", "lamp", "magnitude", "random")
"""Methods whose plan depends on no calibration data; only for older tables, which lack the column `reads_data`."""


@dataclass(frozen=True)
class StudyFrames:
    """Everything that a run directory holds about a study.

    Attributes:
        results: A row per trial (`schemas.RESULTS`).
        layers: A row per trial and layer (`schemas.LAYERS`).
        coverage: A row per layer and channel (`schemas.coverage_schema`); empty without calibration.
        history: A row per trial and epoch (`schemas.HISTORY`); empty without training.
        latency: A row per trial, variant and batch size (`schemas.LATENCY`); empty where nothing was timed.
        study: The resolved study file as nested dicts.
        environment: `environment.json`; any key may be absent.
        missing: Names of files that the run directory does not hold.
        study_text: The study file as it was written.
        sensitivity: A row per dependency group and removal (`schemas.SENSITIVITY`); empty where it was not measured.
        classes: A row per trial and class (`schemas.CLASSES`); empty where it was not recorded.
        images: A row per scored image (`image_schemas.IMAGES`); empty where single images were not kept.
        correct: A row per trial: the images that it gets right (`image_schemas.CORRECT`); likewise.
        blocks: A row per residual block (`schemas.BLOCKS`); empty where the study removes none.
        control_results: The rows of results.parquet that are controls; the other tables, but for `correct`, and
            `results` are without them.
    """

    results: pl.DataFrame
    layers: pl.DataFrame
    coverage: pl.DataFrame
    history: pl.DataFrame
    latency: pl.DataFrame
    study: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, Any] = field(default_factory=dict)
    missing: tuple[str, ...] = ()
    study_text: str = ""
    sensitivity: pl.DataFrame = field(
        default_factory=lambda: pl.DataFrame(pl.from_arrow(schemas.SENSITIVITY.empty_table()))
    )
    classes: pl.DataFrame = field(default_factory=lambda: pl.DataFrame(pl.from_arrow(schemas.CLASSES.empty_table())))
    images: pl.DataFrame = field(default_factory=lambda: pl.DataFrame(pl.from_arrow(IMAGES.empty_table())))
    correct: pl.DataFrame = field(default_factory=lambda: pl.DataFrame(pl.from_arrow(CORRECT.empty_table())))
    blocks: pl.DataFrame = field(default_factory=lambda: pl.DataFrame(pl.from_arrow(schemas.BLOCKS.empty_table())))
    control_results: pl.DataFrame = field(
        default_factory=lambda: pl.DataFrame(pl.from_arrow(schemas.RESULTS.empty_table()))
    )

    @classmethod
    def load(cls, run: RunDirectory) -> StudyFrames:
        """Read a run directory.

        Raises:
            ArtifactError: When results.parquet is missing or holds no trial, or a file cannot be read.
        """
        if not run.exists(schemas.RESULTS_FILE):
            raise ArtifactError(
                f"run directory '{run.location}' holds no {schemas.RESULTS_FILE}, which a study writes when its trials "
                "have ended"
            )
        tables = (schemas.LAYERS_FILE, schemas.COVERAGE_FILE, schemas.HISTORY_FILE, schemas.LATENCY_FILE)
        optional = (*tables, "study.yaml", "environment.json")
        missing = tuple(name for name in optional if not run.exists(name))
        results = _read(run, schemas.RESULTS_FILE, schemas.RESULTS)
        if results.is_empty():
            raise ArtifactError(f"{schemas.RESULTS_FILE} in run directory '{run.location}' holds no trial")
        text = "" if "study.yaml" in missing else run.read_text("study.yaml")
        controls = results.filter(pl.col("control").is_not_null())

        def of_trials(name: str, schema: pa.Schema) -> pl.DataFrame:
            return _read(run, name, schema).join(
                controls.select("trial_id"), on="trial_id", how="anti", maintain_order="left"
            )

        return cls(
            results=results.filter(pl.col("control").is_null()),
            control_results=controls,
            layers=of_trials(schemas.LAYERS_FILE, schemas.LAYERS),
            coverage=_read(run, schemas.COVERAGE_FILE, schemas.coverage_schema(())),
            history=of_trials(schemas.HISTORY_FILE, schemas.HISTORY),
            latency=of_trials(schemas.LATENCY_FILE, schemas.LATENCY),
            study=_parse_study(text, run),
            environment={} if "environment.json" in missing else as_mapping(run.read_json("environment.json")),
            missing=missing,
            study_text=text,
            sensitivity=_read(run, schemas.SENSITIVITY_FILE, schemas.SENSITIVITY),
            classes=of_trials(schemas.CLASSES_FILE, schemas.CLASSES),
            images=_read(run, IMAGES_FILE, IMAGES),
            correct=_read(run, CORRECT_FILE, CORRECT),
            blocks=_read(run, schemas.BLOCKS_FILE, schemas.BLOCKS),
        )

    @property
    def name(self) -> str:
        """The study's name."""
        return str(self.study.get("name") or "study")

    @cached_property
    def target(self) -> str | None:
        """The target that trials were timed in, in words; None where the study has none, or nothing was timed."""
        return target_of(self.results)

    @property
    def learns_without_labels(self) -> bool:
        """True if fine-tuning uses no labels: its accuracies are agreement with the dense model."""
        return (self.study.get("finetune") or {}).get("data") == "calibration"

    @property
    def finetune_score(self) -> str:
        """The score by which fine-tuning chooses its best epoch, in words."""
        return "agreement with the dense model" if self.learns_without_labels else "validation accuracy"

    @cached_property
    def trials(self) -> pl.DataFrame:
        """Every trial with a label, `reads_data` and, in `amount`, what was asked for in words.

        That is its ratio or budget, and its quantisation where it has one; `amount_order` sorts by it.
        """
        return _describe(self.results)

    @cached_property
    def ok(self) -> pl.DataFrame:
        """The trials that succeeded and have an accuracy; see `trials`.

        `macs_share` and `params_share` are fractions of the dense model, `loss_points` the accuracy lost in percentage
        points; `with_speed` says what `speedup` and its like are. Where `is_broken` was not recorded, it is computed by
        the same rule.
        """
        return self._succeeded(self.trials)

    @cached_property
    def controls(self) -> pl.DataFrame:
        """The controls that succeeded, with the columns of `ok`; they are no trials, and nothing else holds them."""
        return self._succeeded(_describe(self.control_results))

    def _succeeded(self, trials: pl.DataFrame) -> pl.DataFrame:
        good = trials.filter((pl.col("status") == schemas.OK) & pl.col("accuracy").is_not_null())
        return with_speed(good, self.target).with_columns(
            (pl.col("macs") / pl.col("macs_dense")).alias("macs_share"),
            (pl.col("params") / pl.col("params_dense")).alias("params_share"),
            (100 * (pl.col("accuracy_dense") - pl.col("accuracy"))).alias("loss_points"),
            pl.Series("is_broken", [is_broken(trial) for trial in good.iter_rows(named=True)], dtype=pl.Boolean),
        )

    @cached_property
    def failed(self) -> pl.DataFrame:
        """The trials without a result, in the order of the study."""
        return self.trials.filter((pl.col("status") != schemas.OK) | pl.col("accuracy").is_null())

    @cached_property
    def ranked(self) -> pl.DataFrame:
        """The trials that succeeded, the best first by the rule of `storage.ranking`."""
        return best_first(self.ok)

    @cached_property
    def choice(self) -> Choice:
        """The one trial that the study leads to, and what is known of it; see `analysis.chosen`."""
        from cleanai_ray.analysis.chosen import choose  # reads frames itself

        return choose(self)

    @property
    def best(self) -> dict[str, Any] | None:
        """The row of the chosen trial, with its accuracies on the images that it is reported on; None if all failed."""
        return self.choice.trial

    @cached_property
    def methods(self) -> tuple[str, ...]:
        """Every method of the study, sorted, including those whose trials all failed."""
        return tuple(sorted(set(self.trials["method"].drop_nulls())))

    @cached_property
    def labels(self) -> tuple[str, ...]:
        """Every method with its coverage metric, sorted."""
        return tuple(sorted(set(self.trials["label"].drop_nulls())))

    @cached_property
    def dense(self) -> dict[str, Any]:
        """The facts of the dense model: the `*_dense` columns of any trial that has them, without the suffix."""
        columns = [name for name in self.results.columns if name.endswith("_dense")]
        facts = {name.removesuffix("_dense"): self.results[name].drop_nulls() for name in columns}
        return {name: values[0] if len(values) else None for name, values in facts.items()}

    @cached_property
    def base_quantization(self) -> str:
        """The quantisation of the trials by which methods are compared: `none` if the study has such trials.

        Quantised trials of the same pruned model say nothing more about the method that chose its channels.
        """
        found = self.trials["quantization"]
        return "none" if "none" in found else str(found[0])

    @cached_property
    def chance(self) -> float | None:
        """The accuracy of guessing, 1 / number of classes; None where the number is not known."""
        classes = self.results["num_classes"].drop_nulls()
        return 1 / classes[0] if len(classes) and classes[0] > 0 else None

    def layers_of(self, trial_id: str) -> pl.DataFrame:
        """Return the layers of a trial in execution order."""
        return self.layers.filter(pl.col("trial_id") == trial_id).sort("layer_index", maintain_order=True)


def best_first(trials: pl.DataFrame) -> pl.DataFrame:
    """Return trials in the order of `storage.ranking`, the best first."""
    columns = [name for name, _ in ORDER]
    descending = [direction == "descending" for _, direction in ORDER]
    return trials.sort(columns, descending=descending, nulls_last=True, maintain_order=True)


def _read(run: RunDirectory, name: str, schema: pa.Schema) -> pl.DataFrame:
    table = run.read_table(name) if run.exists(name) else schema.empty_table()
    absent = [column for column in schema if column.name not in table.column_names]
    for column in absent:
        table = table.append_column(column, pa.nulls(table.num_rows, column.type))
    frame = pl.from_arrow(table)
    assert isinstance(frame, pl.DataFrame)
    return frame.with_columns(pl.col(pl.Float64, pl.Float32).fill_nan(None))


def _parse_study(text: str, run: RunDirectory) -> Mapping[str, Any]:
    try:
        return as_mapping(yaml.safe_load(text))
    except yaml.YAMLError as error:
        raise ArtifactError(f"'study.yaml' in run directory '{run.location}' is not YAML: {error}") from error


def as_mapping(value: Any) -> Mapping[str, Any]:
    """Return a value of a file if it is a mapping, and an empty mapping otherwise."""
    return value if isinstance(value, Mapping) else {}


def _describe(results: pl.DataFrame) -> pl.DataFrame:
    method = pl.col("method").fill_null("unknown")
    label = pl.concat_str([method, pl.col("coverage_metric")], separator="/", ignore_nulls=True)
    asked = results.select("ratio", "requested_budget", pl.col("quantization").fill_null("none")).rows()
    words = [amount_text(ratio, budget) + ("" if bits == "none" else f", {bits}") for ratio, budget, bits in asked]
    order = [
        (*((0, "", ratio or 0.0) if budget is None else (1, *_budget_order(budget))), bits != "none", bits)
        for ratio, budget, bits in asked
    ]
    rank = {key: position for position, key in enumerate(sorted(set(order)))}
    return results.with_columns(
        method,
        pl.coalesce("label", label).alias("label"),
        pl.coalesce("reads_data", ~method.is_in(WITHOUT_DATA)).alias("reads_data"),
        pl.col("mode").fill_null("local"),
        pl.col("quantization").fill_null("none"),
        pl.Series("amount", words, dtype=pl.String),
        pl.Series("amount_order", [rank[key] for key in order], dtype=pl.Int64),
    )


def _budget_order(budget: str) -> tuple[str, float]:
    resource, _, limit = budget.partition("=")
    try:
        return resource, -float(limit)
    except ValueError:
        return budget, 0.0
