"""Every column of the Parquet files of a run directory, defined here; those of single images are in `image_schemas`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pyarrow as pa

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


def _schema(*columns: tuple[str, pa.DataType, str]) -> pa.Schema:
    return pa.schema([pa.field(name, kind, metadata={"description": text}) for name, kind, text in columns])


_TEXT, _REAL, _COUNT, _FLAG = pa.string(), pa.float64(), pa.int64(), pa.bool_()

RESULTS = _schema(
    ("trial_id", _TEXT, "Stable identifier: what defines the trial, in short, and a digest of it."),
    ("status", _TEXT, "ok or failed."),
    ("error", _TEXT, "Why the trial failed, in one sentence."),
    ("warnings", pa.list_(_TEXT), "What the user should know: collapsed layers, a missed budget."),
    ("method", _TEXT, "Importance method."),
    ("coverage_metric", _TEXT, "Coverage metric, for methods that use one."),
    ("label", _TEXT, "Method and coverage metric as charts name them."),
    ("control", _TEXT, "Of a control, its kind (sweep.controls.kinds), also its `method` if none chose its widths."),
    (
        "reads_data",
        _FLAG,
        "True if the plan depends on calibration data: activations, gradients or curves of the calibration images.",
    ),
    ("ratio", _REAL, "Requested share of channels to remove; null if a budget was requested."),
    ("requested_budget", _TEXT, "Requested budget, for instance macs=0.5; null if a ratio was requested."),
    ("mode", _TEXT, "local, global or isomorphic."),
    ("steps", _COUNT, "Iterative pruning steps."),
    ("seed", _COUNT, "Seed of the trial."),
    ("calibration_samples", _COUNT, "Calibration images in the trial's draw, whether its method reads them or not."),
    ("calibration_seed", _COUNT, "Seed that those images were drawn with."),
    ("quantization", _TEXT, "Quantisation of the model after the last other stage: none, int8 or bf16."),
    ("metric", _TEXT, "Name of the score. `accuracy` columns: top-1, mIoU, mAP, 1 / perplexity, R squared for RMSE."),
    ("score_dense", _REAL, "The dense model's score in its own units; null for classification, as the next five."),
    ("score", _REAL, "Score in its own units after the last stage that ran: mIoU, mAP, perplexity or RMSE."),
    ("score_validation", _REAL, "The same on the images that decide on a trial; null where no image was set aside."),
    ("score_test", _REAL, "The same on the images that decide nothing; null where no image was set aside."),
    ("score_validation_dense", _REAL, "Score of the dense model on the images of score_validation."),
    ("score_test_dense", _REAL, "Score of the dense model on the images of score_test."),
    ("accuracy_dense", _REAL, "Top-1 accuracy of the dense model, in [0, 1]."),
    ("accuracy_pruned", _REAL, "Top-1 after the last pruning step, before any repair that follows it."),
    ("accuracy_repaired", _REAL, "Top-1 after repair; null without repair."),
    ("accuracy_finetuned", _REAL, "Top-1 after the fine-tuning at the end; null without it."),
    ("accuracy_quantized", _REAL, "Top-1 of the quantised model; null without quantisation."),
    ("accuracy", _REAL, "Top-1 after the last stage that ran, quantisation included."),
    ("accuracy_validation", _REAL, "Top-1 on those of these images that decide on a trial (images.parquet)."),
    ("accuracy_test", _REAL, "Top-1 on the others, which decide nothing; null where no image was set aside."),
    ("accuracy_validation_dense", _REAL, "Top-1 of the dense model on the images of accuracy_validation."),
    ("accuracy_test_dense", _REAL, "Top-1 of the dense model on the images of accuracy_test."),
    ("num_validation", _COUNT, "Images of accuracy_validation."),
    ("num_test", _COUNT, "Images of accuracy_test."),
    ("accuracy_low", _REAL, "Lower end of the 95 % Wilson interval of `accuracy`."),
    ("accuracy_high", _REAL, "Upper end of the 95 % Wilson interval of `accuracy`."),
    ("is_broken", _FLAG, "True if accuracy_high is at most chance plus a tenth of the dense model's lead over chance."),
    ("lost", _COUNT, "Images that the dense model gets right and the pruned one gets wrong after the last stage."),
    ("gained", _COUNT, "Images that the dense model gets wrong and the pruned one gets right after the last stage."),
    ("mcnemar_p", _REAL, "Two-sided p-value of McNemar's exact test of equal accuracy, from `lost` and `gained`."),
    ("agreement", _REAL, "Share of images on which both models give the same answer, right or wrong."),
    ("kl_to_dense", _REAL, "Mean KL(dense || pruned) of the outputs on the scored images, in nats; needs no labels."),
    ("ece_dense", _REAL, "Expected calibration error of the dense model, 15 bins of equal width, in [0, 1]."),
    ("ece", _REAL, "Expected calibration error after the last stage that ran, likewise."),
    ("top5_dense", _REAL, "Top-5 accuracy of the dense model."),
    ("top5", _REAL, "Top-5 after the last stage that ran."),
    ("loss_dense", _REAL, "Mean cross-entropy of the dense model, in nats."),
    ("loss", _REAL, "Mean cross-entropy after the last stage that ran, in nats."),
    ("num_evaluated", _COUNT, "Images that were scored."),
    ("num_classes", _COUNT, "Classes; chance level is 1 / num_classes."),
    ("params_dense", _COUNT, "Parameters of the dense model."),
    ("params", _COUNT, "Parameters of the pruned model."),
    ("macs_dense", _COUNT, "Multiply-accumulates of one forward pass of the dense model, batch 1."),
    ("macs", _COUNT, "Multiply-accumulates of one forward pass of the pruned model, batch 1."),
    ("size_bytes_dense", _COUNT, "Bytes of the dense model's weights file."),
    ("size_bytes_float", _COUNT, "Bytes of the pruned model's weights file before quantisation."),
    ("size_bytes", _COUNT, "Bytes of the pruned model's weights file; for int8, of its ONNX file."),
    ("latency_ms_b1_p50_dense", _REAL, "Median milliseconds of one dense forward pass, batch 1."),
    ("latency_ms_b1_p50", _REAL, "Median milliseconds of one pruned forward pass, batch 1."),
    ("latency_ms_b1_p90", _REAL, "90th percentile, likewise."),
    ("speedup_b1", _REAL, "Ratio of dense to pruned time within a round, the median over rounds, batch 1."),
    ("speedup_b1_low", _REAL, "Lower end of its 95 % interval, by the bootstrap."),
    ("speedup_b1_high", _REAL, "Upper end of its 95 % interval, by the bootstrap."),
    ("throughput_dense", _REAL, "Images per second of the dense model at the largest batch timed."),
    ("throughput", _REAL, "Images per second of the pruned model at the largest batch timed."),
    ("num_threads", _COUNT, "CPU threads that torch used while timing."),
    ("latency_target", _TEXT, "The target (evaluation.target) in words; null where the study names none."),
    ("latency_exclusive", _FLAG, "True if it was timed alone, after the sweep, with a whole GPU or all cores."),
    ("latency_predicted_ms", _REAL, "Milliseconds in the target as the latency profile predicts; null without one."),
    (
        "speedup_predicted",
        _REAL,
        "Dense over pruned time in the target, both as the latency profile predicts; null without one.",
    ),
    ("latency_ms_target_dense", _REAL, "Median milliseconds of one dense forward pass in the target."),
    ("latency_ms_target", _REAL, "Median milliseconds of one pruned forward pass in the target."),
    ("speedup_target", _REAL, "latency_ms_target_dense over latency_ms_target, from rounds in which both took turns."),
    ("speedup_target_low", _REAL, "Lower end of its 95 % interval."),
    ("speedup_target_high", _REAL, "Upper end of its 95 % interval."),
    ("latency_backend", _TEXT, "What ran both models for the columns above: eager, or onnxruntime for int8."),
    (
        "repair",
        _TEXT,
        "Repair after the last pruning step: compensation, batch-norm recalibration, ridge; null: no repair.",
    ),
    ("channel_ratio_achieved", _REAL, "Share of prunable channels that was removed."),
    ("removed_blocks", pa.list_(_TEXT), "Residual blocks that became their shortcuts; null if none did."),
    ("seconds_total", _REAL, "Seconds the trial took; work that trials share counts in the first of them."),
    ("seconds_prune", _REAL, "Of these, seconds of scoring, selection and cutting."),
    ("seconds_repair", _REAL, "Of these, seconds of repair, after every pruning step that had one."),
    ("seconds_finetune", _REAL, "Of these, seconds of fine-tuning, between pruning steps and at the end."),
    ("seconds_quantize", _REAL, "Of these, seconds of quantisation."),
    ("seconds_evaluate", _REAL, "Of these, seconds of evaluation after each stage, latency included."),
    ("epochs_run", _COUNT, "Fine-tuning epochs that ran, between pruning steps and at the end."),
    ("best_epoch", _COUNT, "The epoch at the end whose weights were kept, from 1; 0: the weights before the first."),
    ("node", _TEXT, "Host name of the machine that the trial ran on."),
    ("device", _TEXT, "Device that it ran on."),
)

LAYERS = _schema(
    ("trial_id", _TEXT, "The trial."),
    ("layer", _TEXT, "Module name of a Conv2d or Linear (or attention) layer."),
    ("layer_index", _COUNT, "Position in execution order, from 0."),
    ("kind", _TEXT, "Class of the module."),
    ("group", _TEXT, "Dependency group of its output channels; null if they cannot be pruned."),
    ("out_channels_dense", _COUNT, "Output channels of the dense layer."),
    ("out_channels", _COUNT, "Output channels that were kept."),
    ("in_channels_dense", _COUNT, "Input channels of the dense layer."),
    ("in_channels", _COUNT, "Input channels that were kept."),
    ("params_dense", _COUNT, "Parameters of the dense layer."),
    ("params", _COUNT, "Parameters of the pruned layer."),
    ("macs_dense", _COUNT, "Multiply-accumulates of the dense layer, batch 1."),
    ("macs", _COUNT, "Multiply-accumulates of the pruned layer, batch 1."),
    ("removed_channels", pa.list_(pa.int32()), "Output channels that were removed, in dense numbering."),
)

CLASSES = _schema(
    ("trial_id", _TEXT, "The trial; its rows are in order of change, the class that lost most first."),
    ("label", _COUNT, "Class, from 0; a class without images has no row."),
    (
        "num_evaluated",
        _COUNT,
        "Images of the class that were scored; of other tasks than classification, all that decide nothing.",
    ),
    ("accuracy_dense", _REAL, "Share of them that the dense model gets right; of other tasks, the score of the class."),
    ("accuracy", _REAL, "The same of the pruned model after the last stage."),
    ("change", _REAL, "The difference; negative if the pruned model is worse."),
)

_COVERAGE_BASE = (
    ("layer", _TEXT, "Module name of the Conv2d or Linear that was observed."),
    ("layer_index", _COUNT, "Position in execution order, from 0."),
    ("side", _TEXT, "input (what the layer receives) or output (what it computes)."),
    ("channel", _COUNT, "Channel, from 0."),
    ("num_samples", _COUNT, "Calibration samples."),
    ("mean", _REAL, "Mean activation over samples and positions."),
    ("standard_deviation", _REAL, "Standard deviation over samples and positions."),
    ("minimum", _REAL, "Smallest activation."),
    ("maximum", _REAL, "Largest activation."),
)

HISTORY = _schema(
    ("trial_id", _TEXT, "The trial, or 'dense' for the training of the dense model."),
    ("epoch", _COUNT, "Epoch, from 1, numbered through all pruning steps of a trial."),
    ("step", _COUNT, "Number of pruning steps before the epoch; null for the dense model."),
    ("train_loss", _REAL, "Mean training loss."),
    (
        "train_accuracy",
        _REAL,
        "Top-1 on the training batches of the epoch; without labels, agreement with the dense model.",
    ),
    ("validation_loss", _REAL, "Mean cross-entropy on the validation samples, in nats."),
    ("validation_accuracy", _REAL, "Top-1 on the validation samples; without labels, agreement with the dense model."),
    ("learning_rate", _REAL, "Learning rate at the end of the epoch."),
    ("images_per_second", _REAL, "Training images per second."),
    ("is_best", _FLAG, "True if this epoch's weights were kept; at most one epoch per pruning step."),
)

SENSITIVITY = _schema(
    ("group", _TEXT, "Dependency group, named after the layer whose output channels number it."),
    ("group_index", _COUNT, "Position of the group, from 0."),
    ("num_channels", _COUNT, "Channels of the group in the dense model."),
    ("removed", _COUNT, "Number of channels removed, from this group alone, least important first."),
    ("channel_ratio", _REAL, "Share of the group's channels that were removed."),
    ("channel", _COUNT, "The last channel that was removed, in dense numbering (of the first block)."),
    ("error", _REAL, "Relative squared error of the layers that read the group, after a refit; summed over them."),
    ("divergence", _REAL, "Mean KL(dense || narrowed) in nats, interpolated between measurements."),
    ("divergence_measured", _REAL, "Mean KL(dense || narrowed) in nats, if it was measured at this width."),
    ("estimated", _TEXT, "Why the group's curve is estimated from its neighbours'; null where it was measured."),
)

LATENCY = _schema(
    ("trial_id", _TEXT, "The trial."),
    ("variant", _TEXT, "dense or pruned (and quantised); the two are timed in turns, in one process."),
    (
        "backend",
        _TEXT,
        "eager, compile or onnxruntime; results.parquet has the times of eager (of onnxruntime for int8). In a target: "
        "its back end.",
    ),
    ("target", _TEXT, "The target that was timed, in words; null for the back ends of evaluation.latency."),
    ("exclusive", _FLAG, "True if the model was timed alone, with a whole GPU or all cores; false beside trials."),
    ("batch_size", _COUNT, "Images per forward pass."),
    ("latency_ms_p50", _REAL, "Median milliseconds of a forward pass, with each round's own pace taken out."),
    ("latency_ms_p90", _REAL, "90th percentile, in milliseconds."),
    ("latency_ms_p99", _REAL, "99th percentile, in milliseconds; with few runs it is close to the slowest."),
    ("speedup", _REAL, "Dense over pruned latency_ms_p50, which is the median ratio within a round; null for dense."),
    ("speedup_low", _REAL, "Lower end of its 95 % interval, by the bootstrap."),
    ("speedup_high", _REAL, "Upper end of its 95 % interval, by the bootstrap."),
    ("throughput", _REAL, "Images per second at the median."),
    ("num_runs", _COUNT, "Timed runs."),
    ("num_warmup", _COUNT, "Untimed runs before the timed ones."),
    ("num_threads", _COUNT, "CPU threads that torch used."),
    ("device", _TEXT, "Device that the models ran on."),
    ("device_name", _TEXT, "Model name of the device, or of the processor."),
    ("peak_memory_bytes", _COUNT, "Peak memory of one forward pass, weights included; null for onnxruntime."),
)

PROFILE = _schema(
    (
        "kind",
        _TEXT,
        "group: one group narrowed alone; repeat: the dense model once more beside it; uniform: all by the same share; "
        "check: all by random shares.",
    ),
    ("model", _COUNT, "Number of the model that was timed; it has a row per group that it narrows."),
    ("group", _TEXT, "Group: the layer whose output channels number it."),
    ("group_index", _COUNT, "Position of the group in the network."),
    ("num_channels", _COUNT, "Channels of the group in the dense model."),
    ("multiple", _COUNT, "Widths of the group are timed at multiples of this."),
    ("width", _COUNT, "Channels that are kept."),
    ("milliseconds", _REAL, "Time of the whole model: the dense time times `ratio`."),
    ("milliseconds_dense", _REAL, "Time of the dense model, the same in all rows."),
    ("ratio", _REAL, "Time over the dense model's, taken in turns; of a repeat, its second over its first."),
    ("fitted_milliseconds", _REAL, "Monotone fit of a group's times; null for models that narrow several groups."),
    ("predicted_milliseconds", _REAL, "Time of the whole model as the profile predicts it."),
    ("target", _TEXT, "The target, in words."),
    ("num_runs", _COUNT, "Timed runs."),
    ("device_name", _TEXT, "Model name of the device, or of the processor."),
)

BLOCKS = _schema(
    ("block", _TEXT, "Residual block."),
    ("block_index", _COUNT, "Position in execution order, from 0."),
    ("layers", pa.list_(_TEXT), "Layers with weights that go with it."),
    ("macs", _COUNT, "Their multiply-accumulates, batch 1."),
    ("macs_share", _REAL, "Their multiply-accumulates over the dense model's."),
    ("divergence", _REAL, "Mean KL(dense || without the block alone) on calibration images, in nats, before repair."),
    ("divergence_repaired", _REAL, "The same after a cheap repair of what is left; null where the study repairs none."),
    ("price", _REAL, "divergence_repaired (or divergence) over macs_share: nats for all MACs, at this block's rate."),
    ("params_share", _REAL, "Parameters that go with it over the dense model's."),
    ("time_share", _REAL, "Time that its removal alone saves over the dense model's; null without a latency budget."),
    ("is_removed", _FLAG, "True if the study's trials remove it, or those of any of its budgets."),
    ("budgets", pa.list_(_TEXT), "Budgets whose trials remove it; null unless each budget has blocks of its own."),
)

COMPARISON = _schema(
    ("key", _TEXT, "Short name of the question, the same in every comparison."),
    ("question", _TEXT, "The question."),
    ("verdict", _TEXT, "yes, no or cannot tell."),
    ("sentence", _TEXT, "The answer in words, or why there is none."),
    ("effect", _REAL, "Mean difference, correlation or overlap, in `unit`; null if nothing can be compared."),
    ("low", _REAL, "Lower end of its 95 % interval, corrected as the p-value is."),
    ("high", _REAL, "Upper end, likewise."),
    ("unit", _TEXT, "points (of top-1 accuracy), rank correlation, correlation or overlap."),
    ("num_pairs", _COUNT, "Pairs of trials that the answer rests on."),
    ("num_dropped", _COUNT, "Pairs that were left out because a trial failed."),
    ("p_value", _REAL, "P-value, corrected for all exploratory questions (Bonferroni); the primary one stands alone."),
    ("studies", pa.list_(_TEXT), "The studies that were pooled."),
)


def coverage_schema(metrics: Sequence[str]) -> pa.Schema:
    """Return the schema of coverage.parquet: a row per layer x channel, a column per coverage metric."""
    return _schema(*_COVERAGE_BASE, *((name, _REAL, f"Coverage by the metric {name}.") for name in metrics))


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
