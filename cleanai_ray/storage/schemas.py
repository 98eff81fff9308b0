"""Every column of the Parquet files of a run directory, but those of results.parquet and of single images."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pyarrow as pa

from cleanai_ray.storage.columns import COUNT, FLAG, REAL, TEXT, described
from cleanai_ray.storage.results_columns import RESULTS as RESULTS

RESULTS_FILE = "results.parquet"
LAYERS_FILE = "layers.parquet"
COVERAGE_FILE = "coverage.parquet"
HISTORY_FILE = "history.parquet"
SENSITIVITY_FILE = "sensitivity.parquet"
LATENCY_FILE = "latency.parquet"
PROFILE_FILE = "profile.parquet"
CLASSES_FILE = "classes.parquet"
BLOCKS_FILE = "blocks.parquet"
COMPARISON_FILE = "comparison.parquet"

DENSE = "dense"
"""The trial_id of rows that describe the dense model (history.parquet only)."""

OK, FAILED = "ok", "failed"
"""The values of results.parquet's `status`."""


LAYERS = described(
    ("trial_id", TEXT, "The trial."),
    ("layer", TEXT, "Module name of a Conv2d or Linear (or attention) layer."),
    ("layer_index", COUNT, "Position in execution order, from 0."),
    ("kind", TEXT, "Class of the module."),
    ("group", TEXT, "Dependency group of its output channels; null if they cannot be pruned."),
    ("out_channels_dense", COUNT, "Output channels of the dense layer."),
    ("out_channels", COUNT, "Output channels that were kept."),
    ("in_channels_dense", COUNT, "Input channels of the dense layer."),
    ("in_channels", COUNT, "Input channels that were kept."),
    ("params_dense", COUNT, "Parameters of the dense layer."),
    ("params", COUNT, "Parameters of the pruned layer."),
    ("macs_dense", COUNT, "Multiply-accumulates of the dense layer, batch 1."),
    ("macs", COUNT, "Multiply-accumulates of the pruned layer, batch 1."),
    ("removed_channels", pa.list_(pa.int32()), "Output channels that were removed, in dense numbering."),
)

CLASSES = described(
    ("trial_id", TEXT, "The trial; its rows are in order of change, the class that lost most first."),
    ("label", COUNT, "Class, from 0; a class without images has no row."),
    (
        "num_evaluated",
        COUNT,
        "Images of the class that were scored; of other tasks than classification, all that decide nothing.",
    ),
    ("accuracy_dense", REAL, "Share of them that the dense model gets right; of other tasks, the score of the class."),
    ("accuracy", REAL, "The same of the pruned model after the last stage."),
    ("change", REAL, "The difference; negative if the pruned model is worse."),
)

_COVERAGE_BASE = (
    ("layer", TEXT, "Module name of the Conv2d or Linear that was observed."),
    ("layer_index", COUNT, "Position in execution order, from 0."),
    ("side", TEXT, "input (what the layer receives) or output (what it computes)."),
    ("channel", COUNT, "Channel, from 0."),
    ("num_samples", COUNT, "Calibration samples."),
    ("mean", REAL, "Mean activation over samples and positions."),
    ("standard_deviation", REAL, "Standard deviation over samples and positions."),
    ("minimum", REAL, "Smallest activation."),
    ("maximum", REAL, "Largest activation."),
)

HISTORY = described(
    ("trial_id", TEXT, "The trial, or 'dense' for the training of the dense model."),
    ("epoch", COUNT, "Epoch, from 1, numbered through all pruning steps of a trial."),
    ("step", COUNT, "Number of pruning steps before the epoch; null for the dense model."),
    ("train_loss", REAL, "Mean training loss."),
    (
        "train_accuracy",
        REAL,
        "Top-1 on the training batches of the epoch; without labels, agreement with the dense model.",
    ),
    ("validation_loss", REAL, "Mean cross-entropy on the validation samples, in nats."),
    ("validation_accuracy", REAL, "Top-1 on the validation samples; without labels, agreement with the dense model."),
    ("learning_rate", REAL, "Learning rate at the end of the epoch."),
    ("images_per_second", REAL, "Training images per second."),
    (
        "is_best",
        FLAG,
        "True if this epoch's weights were kept; at most one per pruning step, and none where those before them were.",
    ),
)

SENSITIVITY = described(
    ("group", TEXT, "Dependency group, named after the layer whose output channels number it."),
    ("group_index", COUNT, "Position of the group, from 0."),
    ("num_channels", COUNT, "Channels of the group in the dense model."),
    ("removed", COUNT, "Number of channels removed, from this group alone, least important first."),
    ("channel_ratio", REAL, "Share of the group's channels that were removed."),
    ("channel", COUNT, "The last channel that was removed, in dense numbering (of the first block)."),
    ("error", REAL, "Relative squared error of the layers that read the group, after a refit; summed over them."),
    ("divergence", REAL, "Mean KL(dense || narrowed) in nats, interpolated between measurements."),
    ("divergence_measured", REAL, "Mean KL(dense || narrowed) in nats, if it was measured at this width."),
    ("estimated", TEXT, "Why the group's curve is estimated from its neighbours'; null where it was measured."),
)

LATENCY = described(
    ("trial_id", TEXT, "The trial."),
    ("variant", TEXT, "dense or pruned (and quantised); the two are timed in turns, in one process."),
    (
        "backend",
        TEXT,
        "eager, compile or onnxruntime; results.parquet has the times of eager (of onnxruntime for int8). In a target: "
        "its back end.",
    ),
    ("target", TEXT, "The target that was timed, in words; null for the back ends of evaluation.latency."),
    ("exclusive", FLAG, "True if the model was timed alone, with a whole GPU or all cores; false beside trials."),
    ("batch_size", COUNT, "Images per forward pass."),
    ("latency_ms_p50", REAL, "Median milliseconds of a forward pass, with each round's own pace taken out."),
    ("latency_ms_p90", REAL, "90th percentile, in milliseconds."),
    ("latency_ms_p99", REAL, "99th percentile, in milliseconds; with few runs it is close to the slowest."),
    ("speedup", REAL, "Dense over pruned latency_ms_p50, which is the median ratio within a round; null for dense."),
    ("speedup_low", REAL, "Lower end of its 95 % interval, by the bootstrap."),
    ("speedup_high", REAL, "Upper end of its 95 % interval, by the bootstrap."),
    ("throughput", REAL, "Images per second at the median."),
    ("num_runs", COUNT, "Timed runs."),
    ("num_warmup", COUNT, "Untimed runs before the timed ones."),
    ("num_threads", COUNT, "CPU threads that torch used."),
    ("device", TEXT, "Device that the models ran on."),
    ("device_name", TEXT, "Model name of the device, or of the processor."),
    ("peak_memory_bytes", COUNT, "Peak memory of one forward pass, weights included; null for onnxruntime."),
)

PROFILE = described(
    (
        "kind",
        TEXT,
        "group: one group narrowed alone; repeat: the dense model once more beside it; uniform: all by the same share; "
        "check: all by random shares.",
    ),
    ("model", COUNT, "Number of the model that was timed; it has a row per group that it narrows."),
    ("group", TEXT, "Group: the layer whose output channels number it."),
    ("group_index", COUNT, "Position of the group in the network."),
    ("num_channels", COUNT, "Channels of the group in the dense model."),
    ("multiple", COUNT, "Widths of the group are timed at multiples of this."),
    ("width", COUNT, "Channels that are kept."),
    ("milliseconds", REAL, "Time of the whole model: the dense time times `ratio`."),
    ("milliseconds_dense", REAL, "Time of the dense model, the same in all rows."),
    ("ratio", REAL, "Time over the dense model's, taken in turns; of a repeat, its second over its first."),
    ("fitted_milliseconds", REAL, "Monotone fit of a group's times; null for models that narrow several groups."),
    ("predicted_milliseconds", REAL, "Time of the whole model as the profile predicts it."),
    ("target", TEXT, "The target, in words."),
    ("num_runs", COUNT, "Timed runs."),
    ("device_name", TEXT, "Model name of the device, or of the processor."),
)

BLOCKS = described(
    ("block", TEXT, "Residual block."),
    ("block_index", COUNT, "Position in execution order, from 0."),
    ("layers", pa.list_(TEXT), "Layers with weights that go with it."),
    ("macs", COUNT, "Their multiply-accumulates, batch 1."),
    ("macs_share", REAL, "Their multiply-accumulates over the dense model's."),
    ("divergence", REAL, "Mean KL(dense || without the block alone) on calibration images, in nats, before repair."),
    ("divergence_repaired", REAL, "The same after a cheap repair of what is left; null where the study repairs none."),
    ("price", REAL, "divergence_repaired (or divergence) over macs_share: nats for all MACs, at this block's rate."),
    ("params_share", REAL, "Parameters that go with it over the dense model's."),
    ("time_share", REAL, "Time that its removal alone saves over the dense model's; null without a latency budget."),
    ("is_removed", FLAG, "True if the study's trials remove it, or those of any of its budgets."),
    ("budgets", pa.list_(TEXT), "Budgets whose trials remove it; null unless each budget has blocks of its own."),
)

COMPARISON = described(
    ("key", TEXT, "Short name of the question, the same in every comparison."),
    ("question", TEXT, "The question."),
    ("verdict", TEXT, "yes, no or cannot tell."),
    ("sentence", TEXT, "The answer in words, or why there is none."),
    ("effect", REAL, "Mean difference, correlation or overlap, in `unit`; null if nothing can be compared."),
    ("low", REAL, "Lower end of its 95 % interval, corrected as the p-value is."),
    ("high", REAL, "Upper end, likewise."),
    ("unit", TEXT, "points (of top-1 accuracy), rank correlation, correlation or overlap."),
    ("num_pairs", COUNT, "Pairs of trials that the answer rests on."),
    ("num_dropped", COUNT, "Pairs that were left out because a trial failed."),
    ("p_value", REAL, "P-value, corrected for all exploratory questions (Bonferroni); the primary one stands alone."),
    ("studies", pa.list_(TEXT), "The studies that were pooled."),
)


def coverage_schema(metrics: Sequence[str]) -> pa.Schema:
    """Return the schema of coverage.parquet: a row per layer x channel, a column per coverage metric."""
    return described(*_COVERAGE_BASE, *((name, REAL, f"Coverage by the metric {name}.") for name in metrics))


def to_table(rows: Iterable[Mapping[str, Any]], schema: pa.Schema) -> pa.Table:
    """Make a table with exactly the columns of a schema; a key that a row lacks becomes null.

    Raises:
        KeyError: When a row has a key that is no column.
    """
    rows = list(rows)
    unknown = {key for row in rows for key in row} - set(schema.names)
    if unknown:
        raise KeyError(f"no such column: {', '.join(sorted(unknown))}")
    return pa.Table.from_pylist([dict(row) for row in rows], schema=schema)
