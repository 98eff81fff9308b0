"""Measurements made once on the dense model and shared by all trials: statistics, second moments, sensitivity."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor, nn

from cleanai_ray.config.calibration_draw import CalibrationDraw
from cleanai_ray.config.study import Study, Trial
from cleanai_ray.importance.curves import SensitivityCurves
from cleanai_ray.pruning.allocation import Allocation
from cleanai_ray.pruning.plan import BlockPlan
from cleanai_ray.repair.moments import ConsumerMoments
from cleanai_ray.sensitivity import (
    CandidateScorer,
    measure_curves,
    probe_images,
    search_images,
)
from cleanai_ray.sensitivity.block_choice import BlockChoice
from cleanai_ray.sensitivity.candidates import MAX_SEARCH_IMAGES
from cleanai_ray.stages.blocks import PricedBlocks
from cleanai_ray.stages.shard_measures import split_positions, study_graph
from cleanai_ray.stages.workspace import Workspace, methods_need
from cleanai_ray.statistics import ActivationStatistics


@dataclass(frozen=True, kw_only=True, eq=False)
class DenseMeasures:
    """Measurements of the dense model on the calibration samples; each is None if no trial of the study reads it.

    Attributes:
        statistics: Activation statistics.
        moments: Second moments of the inputs of the layers that read prunable layers.
        curves: Sensitivity curves of the dependency groups.
        allocations: Results of the searches for allocations, by the key of their problem.
        blocks: The residual blocks, if the study removes any; all else is then of the model without them.
        by_budget: The measurements for trials of each budget, by the budget as text, where each has blocks of its own;
            these are then of the first budget's.
    """

    statistics: ActivationStatistics | None = None
    moments: ConsumerMoments | None = None
    curves: SensitivityCurves | None = None
    allocations: Mapping[str, Allocation] = field(default_factory=dict)
    blocks: PricedBlocks = field(default_factory=PricedBlocks)
    by_budget: Mapping[str, DenseMeasures] = field(default_factory=dict)

    def of(self, trial: Trial) -> DenseMeasures:
        """Return the measurements that a trial reads."""
        return self.by_budget.get(str(trial.budget), self)

    def choice_for(self, trial: Trial) -> BlockChoice | None:
        """Return the choice of a trial's blocks; None where the study does not choose them by budget."""
        return self.blocks.choices.get(str(trial.budget))


def measures_folder(study: Study, draw: CalibrationDraw) -> str:
    """Return the folder of a run directory that keeps the measurements of one draw."""
    return "cache" if len(study.draws()) == 1 else f"cache/{draw.name}"


def needs_statistics(study: Study) -> bool:
    """Return whether any method of a study reads activations or gradients."""
    return methods_need(study, "needs_statistics")


def needs_moments(study: Study) -> bool:
    """Return whether any trial of a study reads second moments."""
    repaired = study.pruning.remove_blocks is None and study.repair.compensation in ("closed_form", "auto")
    return needs_curves(study) or repaired


def needs_curves(study: Study) -> bool:
    """Return whether any method of a study reads sensitivity curves."""
    return methods_need(study, "needs_curves")


def measure_study_curves(
    workspace: Workspace, model: nn.Module, moments: ConsumerMoments, blocks: Sequence[BlockPlan] = ()
) -> SensitivityCurves:
    """Return the sensitivity curves of a study's model, which may be without some blocks.

    Outputs are compared on the images held back.
    """
    _, held = split_positions(workspace)
    return measure_curves(study_graph(workspace, model, blocks), moments, probe_images(_images(workspace, held)))


def study_candidates(workspace: Workspace, model: nn.Module, measures: DenseMeasures) -> CandidateScorer:
    """Return the scorer of a search for allocations; its result is judged on the images that gave no moments."""
    assert measures.curves is not None
    assert measures.moments is not None
    working, held = split_positions(workspace)
    images = search_images(_images(workspace, working[:MAX_SEARCH_IMAGES]))
    judges = probe_images(_images(workspace, held))
    return CandidateScorer(
        study_graph(workspace, model, measures.blocks.plans), measures.curves, measures.moments, images, judges
    )


def _images(workspace: Workspace, positions: np.ndarray) -> list[Tensor]:
    return [images for images, _ in workspace.batches("calibration", positions=positions)]
