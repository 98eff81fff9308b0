"""The Parquet files of a run directory, made from the records of its trials."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from cleanai_ray.coverage.base import computable_metrics
from cleanai_ray.registry import METRICS
from cleanai_ray.sensitivity.table import curve_rows
from cleanai_ray.stages.dense_measures import DenseMeasures
from cleanai_ray.stages.evidence import decoded
from cleanai_ray.statistics import ActivationStatistics
from cleanai_ray.storage import schemas
from cleanai_ray.storage.image_schemas import CORRECT, CORRECT_FILE, IMAGES, IMAGES_FILE
from cleanai_ray.storage.run_directory import RunDirectory

ALWAYS_WRITTEN = (
    schemas.RESULTS_FILE,
    schemas.LAYERS_FILE,
    schemas.CLASSES_FILE,
    schemas.COVERAGE_FILE,
    schemas.HISTORY_FILE,
    schemas.LATENCY_FILE,
    IMAGES_FILE,
    CORRECT_FILE,
)
"""The tables that every finished run has."""


def write_tables(
    run: RunDirectory,
    records: Sequence[Mapping[str, Any]],
    dense_history: Iterable[Mapping[str, Any]],
    measures: DenseMeasures,
) -> None:
    """Write every table of a run; sensitivity.parquet and blocks.parquet only if there is something to write.

    Args:
        run: The run directory.
        records: The record of each trial: its rows, by table.
        dense_history: A row per epoch of the dense model's training.
        measures: Measurements of the dense model; if a study compares several draws of the calibration samples, those
            of the first draw.
    """

    def rows(name: str) -> list[Mapping[str, Any]]:
        return [row for record in records for row in record.get(name, ())]

    run.write_table(schemas.LAYERS_FILE, schemas.to_table(rows("layers"), schemas.LAYERS))
    run.write_table(schemas.CLASSES_FILE, schemas.to_table(rows("classes"), schemas.CLASSES))
    run.write_table(schemas.HISTORY_FILE, schemas.to_table([*dense_history, *rows("history")], schemas.HISTORY))
    run.write_table(schemas.LATENCY_FILE, schemas.to_table(rows("latency"), schemas.LATENCY))
    schema = schemas.coverage_schema(METRICS.names())
    run.write_table(schemas.COVERAGE_FILE, schemas.to_table(coverage_rows(measures.statistics), schema))
    if measures.curves is not None:
        run.write_table(schemas.SENSITIVITY_FILE, schemas.to_table(curve_rows(measures.curves), schemas.SENSITIVITY))
    if measures.blocks.errors:
        run.write_table(schemas.BLOCKS_FILE, schemas.to_table(measures.blocks.rows(), schemas.BLOCKS))
    else:
        run.delete(schemas.BLOCKS_FILE)  # of an earlier run with other settings
    run.write_table(schemas.RESULTS_FILE, schemas.to_table([record["row"] for record in records], schemas.RESULTS))


def write_image_tables(
    run: RunDirectory, records: Sequence[Mapping[str, Any]], images: Sequence[Mapping[str, Any]]
) -> None:
    """Write images.parquet and correct.parquet; neither where it is not known which images the dense model gets right.

    Args:
        run: The run directory.
        records: The record of each trial.
        images: The rows of images.parquet.
    """
    if not images:
        return
    rows = [decoded(row) for record in records for row in record.get("hits", ()) if row["num_images"] == len(images)]
    run.write_table(IMAGES_FILE, schemas.to_table(images, IMAGES))
    run.write_table(CORRECT_FILE, schemas.to_table(rows, CORRECT))


def coverage_rows(statistics: ActivationStatistics | None) -> list[dict[str, Any]]:
    """Return a row per observed layer x channel, with a column per coverage metric that can be computed."""
    rows = []
    for side in ("inputs", "outputs") if statistics else ():
        for index, (layer, value) in enumerate(getattr(statistics, side).items()):
            columns = {name: metric(value).tolist() for name, metric in computable_metrics(value).items()}
            columns["mean"] = value.mean.tolist()
            columns["standard_deviation"] = value.standard_deviation.tolist()
            columns["minimum"] = value.minimum.tolist()
            columns["maximum"] = value.maximum.tolist()
            for channel in range(value.num_channels):
                row = {name: entries[channel] for name, entries in columns.items()}
                place = {"layer": layer, "layer_index": index, "side": side.removesuffix("s"), "channel": channel}
                rows.append({**place, "num_samples": int(value.num_samples), **row})
    return rows
