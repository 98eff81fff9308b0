"""Calibration of a study: what its methods and metrics read, shard by shard, in one pass or two."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import nn

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
    """What a calibration collects beside sums over what layers receive.

    Attributes:
        outputs: Statistics of what layers compute.
        gradients: Magnitudes of gradients.
        squared_gradients: Squares of gradients.
        sections: Number of sections that activations are counted in, in a second pass; None: there is no second pass.
    """

    outputs: bool
    gradients: bool
    squared_gradients: bool
    sections: int | None

    @staticmethod
    def of(study: Study, trial: Trial | None = None) -> CalibrationNeeds:
        """Return what a study's trials read, or what one of them does."""
        trials = study.trials() if trial is None else (trial,)
        named = {trial.method: trial.options for trial in trials}
        methods = [create_method(name, options) for name, options in named.items()]
        calibration = study.data.calibration
        counted = any(needs_sections(trial.coverage_metric) for trial in trials)
        return CalibrationNeeds(
            outputs=calibration.observe == "output" or any(method.needs_outputs for method in methods),
            gradients=any(method.needs_gradients for method in methods),
            squared_gradients=any(method.needs_squared_gradients for method in methods),
            sections=calibration.sections if counted else None,
        )


def calibrate_shard(
    workspace: Workspace, model: nn.Module, positions: np.ndarray, needs: CalibrationNeeds
) -> ActivationStatistics:
    """Return the statistics of a model on one shard of the calibration samples: the first pass."""
    calibration = workspace.study.data.calibration
    return calibrate(
        model,
        workspace.batches("calibration", positions=positions),
        CalibrationOptions(
            threshold=calibration.threshold,
            top_k=calibration.top_k,
            outputs=needs.outputs,
            gradients=needs.gradients,
            squared_gradients=needs.squared_gradients,
        ),
    )


def count_shard(
    workspace: Workspace, model: nn.Module, positions: np.ndarray, ranges: Ranges, sections: int
) -> ActivationHistograms:
    """Return the histograms of a model on one shard of the calibration samples: the second pass.

    Args:
        workspace: The opened study.
        model: The model of the first pass.
        positions: Positions of the shard among the calibration samples.
        ranges: Those of the merged statistics of all shards.
        sections: Number of sections.
    """
    return count_sections(model, workspace.batches("calibration", positions=positions), ranges, sections=sections)


def calibrate_locally(workspace: Workspace, model: nn.Module, trial: Trial | None = None) -> ActivationStatistics:
    """Return the statistics of a model on all calibration samples: its shards', merged in a tree of fixed shape.

    Args:
        workspace: The opened study.
        model: The model on the workspace's device; it is not changed.
        trial: The trial that reads them; by default all of the study do.
    """
    needs, shards = CalibrationNeeds.of(workspace.study, trial), workspace.shards()
    statistics = merge_tree([calibrate_shard(workspace, model, positions, needs) for positions in shards])
    if needs.sections is None:
        return statistics
    ranges, sections = statistics.ranges, needs.sections
    counted = [count_shard(workspace, model, positions, ranges, sections) for positions in shards]
    return statistics.with_histograms(merge_tree(counted))
