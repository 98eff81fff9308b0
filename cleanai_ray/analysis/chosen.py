"""The one trial that a study leads to: cover, verdict, risks, charts, `models/` and `export --trial best` all take it.

1. Trials that differ in the seed or in the draw of the calibration images alone are one configuration. Configurations
   are compared by their mean accuracy on the images that decide.
2. The recommendation's rule takes one of them, and its best trial on the images that decide stands for it.
3. What is said of this trial, the runner-up and the dense model comes from the other images, which decided nothing.

Where no images were set aside, all of them decide and are reported on; what that flatters is simulated.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import polars as pl

from cleanai_ray.analysis.frames import StudyFrames, best_first
from cleanai_ray.analysis.image_evidence import against_dense, between
from cleanai_ray.analysis.intervals import interval_of
from cleanai_ray.analysis.numbers import plural, times
from cleanai_ray.analysis.optimism import simulated_optimism
from cleanai_ray.analysis.paired import PairedDifference
from cleanai_ray.analysis.recommendation import Recommendation, cost_in_words, recommend
from cleanai_ray.analysis.score_words import compared_text, score_text
from cleanai_ray.analysis.speed import where_timed
from cleanai_ray.analysis.wording import describe_trial
from cleanai_ray.storage.image_schemas import TEST

CONFIGURATION = (
    "label",
    "method",
    "coverage_metric",
    "ratio",
    "requested_budget",
    "mode",
    "steps",
    "calibration_samples",
    "quantization",
)
"""The columns that make a configuration; seeds and draws of the calibration images are its replicates."""

COSTS = (
    "macs",
    "params",
    "size_bytes",
    "throughput",
    "latency_predicted_ms",
    "speedup_predicted",
    *(f"latency_ms_{where}" for where in ("b1_p50_dense", "b1_p50", "target_dense", "target")),
    *(f"speedup_{where}{end}" for where in ("b1", "target") for end in ("", "_low", "_high")),
)
"""The columns that say what a trial costs: a configuration has their medians over the replicates that have a value.

The most accurate replicate may be the fastest by luck, too, so its own would flatter the configuration.
"""


@dataclass(frozen=True)
class Choice:
    """The chosen trial, and what is known of it.

    Attributes:
        trial: Its row, as `StudyFrames.ok` has it, with accuracies on the images that it is reported on. The most
            accurate trial where none can be recommended; None where all failed.
        is_recommended: False if the trial is only the most accurate one.
        recommendation: The recommendation.
        has_test_images: True if the trial is reported on images that decided nothing.
        against_dense: Its difference from the dense model on the images that it is reported on; None if not known.
        against_runner_up: Its difference from the runner-up likewise.
        num_replicates: Trials of its configuration that succeeded.
        replicate_mean: Their mean accuracy on the images that decide.
        optimism: Points by which the reported accuracy is too high because the same images decided, as simulated;
            None where other images decided, or where there was no choice.
    """

    trial: dict[str, Any] | None
    is_recommended: bool
    recommendation: Recommendation
    has_test_images: bool = False
    against_dense: PairedDifference | None = None
    against_runner_up: PairedDifference | None = None
    num_replicates: int = 1
    replicate_mean: float | None = None
    optimism: float | None = None


def choose(study: StudyFrames) -> Choice:
    """Return the trial that a study leads to."""
    if study.ok.is_empty():
        return Choice(None, False, recommend(study))
    has_test = has_test_images(study)
    view = selection_view(study)
    found = recommend(view, _where_decided(view) if has_test else "")
    picked = found.trial if found.trial is not None else view.ranked.row(0, named=True)
    role = TEST if has_test else None
    trial = reported_row(study, picked["trial_id"], has_test=has_test)
    against = against_dense(study, trial, role)
    if against is not None:  # one p-value of it in the whole report, which agrees with the interval
        trial |= {"mcnemar_p": against.p_value}
    runner_up = None
    if found.runner_up is not None:
        runner_up = reported_row(study, found.runner_up["trial_id"], has_test=has_test)
    choice = Choice(
        trial=trial,
        is_recommended=found.trial is not None,
        recommendation=found,
        has_test_images=has_test,
        against_dense=against,
        against_runner_up=between(study, trial["trial_id"], runner_up["trial_id"], role) if runner_up else None,
        num_replicates=picked["num_replicates"],
        replicate_mean=picked["accuracy"],
        optimism=None if has_test or len(study.ok) < 2 else simulated_optimism(study, trial),
    )
    if found.trial is None:
        return choice
    told = replace(
        found,
        trial=trial,
        runner_up=runner_up,
        sentence=_sentence(choice),
        cost=" ".join(filter(None, [cost_in_words(trial, study.target), _speed_of_replicates(picked, study)])),
    )
    return replace(choice, recommendation=told)


def _where_decided(view: StudyFrames) -> str:
    """Say on which images the accuracies of `selection_view` are, where other images are reported on."""
    counts = view.ok["num_evaluated"].drop_nulls().unique().to_list()
    return f" on the {plural(counts[0], 'image')} that decide" if len(counts) == 1 else " on the images that decide"


def has_test_images(study: StudyFrames) -> bool:
    """Return whether every trial that succeeded was scored on images that decide and on images that do not."""
    missing = study.ok.select("accuracy_validation", "accuracy_test").null_count().row(0)
    return not study.ok.is_empty() and not any(missing)


def selection_view(study: StudyFrames) -> StudyFrames:
    """Return the study as its choice sees it: a row per configuration, with its mean on the images that decide.

    Its `COSTS` are medians over its trials, and the other columns those of its best trial on these images;
    `num_replicates` counts its trials, and `num_timed` those whose speed is known.
    """
    good = study.ok
    if has_test_images(study):
        # As in `reported_row`: what an older table does not say of these images is unknown.
        good = good.with_columns(
            pl.col("accuracy_validation").alias("accuracy"),
            pl.col("accuracy_validation_dense").alias("accuracy_dense"),
            pl.col("num_validation").alias("num_evaluated"),
            pl.col("score_validation").alias("score"),
            pl.col("score_validation_dense").alias("score_dense"),
        )
    keys = list(CONFIGURATION)
    first = best_first(good).unique(keys, keep="first", maintain_order=True)
    kinds = study.results.schema
    known = [name for name in COSTS if name in kinds]
    summary = good.group_by(keys).agg(
        pl.mean("accuracy"),
        *(pl.median(name).cast(kinds[name]) for name in known),
        pl.len().cast(pl.Int64).alias("num_replicates"),
        pl.count("speedup").cast(pl.Int64).alias("num_timed"),
    )
    rows = first.drop("accuracy", *known).join(summary, on=keys, how="left", nulls_equal=True, maintain_order="left")
    return replace(study, results=rows.select(*study.results.columns, "num_replicates", "num_timed"))


def reported_row(study: StudyFrames, trial_id: str, *, has_test: bool) -> dict[str, Any]:
    """Return the row of a trial with the accuracies on the images that it is reported on."""
    row = study.ok.row(by_predicate=pl.col("trial_id") == trial_id, named=True)
    if not has_test:
        return row
    # Scores of all images do not compare with these: an older table, which has no others, leaves them unknown.
    row |= {"accuracy": row["accuracy_test"], "accuracy_dense": row["accuracy_test_dense"]}
    row |= {"score": row["score_test"], "score_dense": row["score_test_dense"], "num_evaluated": row["num_test"]}
    dense = row["accuracy_dense"]
    row["loss_points"] = None if dense is None else 100 * (dense - row["accuracy"])
    interval, found = interval_of(row), against_dense(study, row)
    if interval is not None:
        row |= {"accuracy_low": interval.low, "accuracy_high": interval.high}
    if found is not None:
        row |= {"lost": found.lost, "gained": found.gained, "mcnemar_p": found.p_value}
    return row


def _sentence(choice: Choice) -> str:
    """Say which trial to take, with its own accuracy on the images that it is reported on."""
    trial = choice.trial
    assert trial is not None
    interval = interval_of(trial)
    words = f"Take {describe_trial(trial)}, trial {trial['trial_id']}: {score_text(trial)}"
    words += f" (95 % interval {interval})" if interval else ""
    if choice.has_test_images:
        images, number = "test images", trial["num_evaluated"]
        words += f" on {images if number is None else plural(number, 'test image')}, which decided nothing."
    else:
        words += "."
    if choice.num_replicates > 1 and choice.replicate_mean is not None:
        where = " on the images that decide" if choice.has_test_images else ""
        words += (
            f" It stands for {choice.num_replicates} trials that differ in seed or draw alone; their mean{where} is "
            f"{compared_text(trial, choice.replicate_mean)}."
        )
    if choice.optimism is not None:
        words += f" These images also chose it: expect about {choice.optimism:.1f} points less on new ones (simulated)."
    return words


def _speed_of_replicates(picked: dict[str, Any], study: StudyFrames) -> str:
    """Say the median speed-up of a configuration, by which it was chosen; the trial's own is told before it."""
    if picked["num_replicates"] < 2 or picked["speedup"] is None:
        return ""
    count, speed = picked["num_timed"], f"{times(picked['speedup'])} the speed {where_timed(study.target)}"
    if count == 1:
        return f"Of the trials that differ from it in seed or draw alone, it or another one was timed: {speed}."
    return f"The median of the {count} timed trials that differ in seed or draw alone is {speed}."
