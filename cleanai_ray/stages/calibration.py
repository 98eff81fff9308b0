"""Calibration of a study: the statistics that its methods and metrics read, shard by shard, in one pass or two."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from torch import Tensor, nn

from cleanai_ray.config.study import Study, Trial
from cleanai_ray.coverage.base import needs_sections
from cleanai_ray.importance.base import create_method
from cleanai_ray.stages.workspace import Workspace
from cleanai_ray.statistics import (
    ActivationHistograms,
    ActivationStatistics,
    CalibrationOptions,
    Ranges,
    calibrate,
    count_sections,
)
from cleanai_ray.statistics.merging import merge_tree


@dataclass(frozen=True, kw_only=True)
class CalibrationNeeds:
    """The statistics that a calibration collects, besides sums over the inputs of layers.

    Attributes:
        outputs: True for sums over the outputs of layers.
        gradients: True for magnitudes of gradients.
        squared_gradients: True for squares of gradients.
        sections: Number of bins of the activation histograms, counted in a second pass; None for no second pass.
    """

    outputs: bool
    gradients: bool
    squared_gradients: bool
    sections: int | None

    @staticmethod
    def of(study: Study, trial: Trial | None = None) -> CalibrationNeeds:
        """Return what all trials of a study need, or what one of them needs."""
        trials = study.trials() if trial is None else (trial,)
        named = {trial.method: trial.options for trial in trials}
        methods = [create_method(name, options) for name, options in named.items()]
        calibration = study.data.calibration
        needs_histograms = any(needs_sections(trial.coverage_metric) for trial in trials)
        return CalibrationNeeds(
            outputs=calibration.observe == "output" or any(method.needs_outputs for method in methods),
            gradients=any(method.needs_gradients for method in methods),
            squared_gradients=any(method.needs_squared_gradients for method in methods),
            sections=calibration.sections if needs_histograms else None,
        )


def calibrate_shard(
    workspace: Workspace, model: nn.Module, positions: np.ndarray, needs: CalibrationNeeds
) -> ActivationStatistics:
    """Return the statistics of a model on one shard of the calibration samples: the first pass."""
    return calibrate_batches(workspace, model, workspace.batches("calibration", positions=positions), needs)


def calibrate_batches(
    workspace: Workspace, model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], needs: CalibrationNeeds
) -> ActivationStatistics:
    """Return the statistics of a model on batches of calibration samples, as the study wants them."""
    calibration = workspace.study.data.calibration
    options = CalibrationOptions(
        threshold=calibration.threshold,
        top_k=calibration.top_k,
        outputs=needs.outputs,
        gradients=needs.gradients,
        squared_gradients=needs.squared_gradients,
        precision=calibration.precision,
    )
    task = workspace.study.task
    loss = None if task.is_classification and task.loss is None else workspace.task.network_loss
    return calibrate(model, batches, options, loss=loss)


def count_shard(
    workspace: Workspace, model: nn.Module, positions: np.ndarray, ranges: Ranges, num_bins: int
) -> ActivationHistograms:
    """Return the histograms of a model on one shard of the calibration samples: the second pass.

    Args:
        workspace: The opened study.
        model: The model of the first pass.
        positions: Positions of the shard among the calibration samples.
        ranges: The layers' ranges in the merged statistics of all shards.
        num_bins: Number of bins of a histogram.
    """
    batches = workspace.batches("calibration", positions=positions)
    precision = workspace.study.data.calibration.precision
    return count_sections(model, batches, ranges, sections=num_bins, precision=precision)


def calibrate_locally(workspace: Workspace, model: nn.Module, trial: Trial | None = None) -> ActivationStatistics:
    """Return the statistics of a model on all calibration samples, merged shard by shard in a tree of fixed shape.

    Args:
        workspace: The opened study.
        model: The model on the workspace's device; it is not changed.
        trial: Collect what this trial needs; by default, what all trials of the study need.
    """
    needs, shards = CalibrationNeeds.of(workspace.study, trial), workspace.shards()
    statistics = merge_tree([calibrate_shard(workspace, model, positions, needs) for positions in shards])
    if needs.sections is None:
        return statistics
    ranges, num_bins = statistics.ranges, needs.sections
    histograms = [count_shard(workspace, model, positions, ranges, num_bins) for positions in shards]
    return statistics.with_histograms(merge_tree(histograms))
