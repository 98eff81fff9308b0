"""Measurements made once on the dense model and shared by all trials: statistics, second moments, sensitivity."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor, nn

from cleanai_ray.config.calibration_draw import CalibrationDraw
from cleanai_ray.config.study import Study
from cleanai_ray.graph.graph import ChannelGraph
from cleanai_ray.importance.curves import SensitivityCurves
from cleanai_ray.nn.open_attention import open_attention
from cleanai_ray.pruning.allocation import Allocation
from cleanai_ray.repair.images import is_held_back
from cleanai_ray.repair.moments import ConsumerMoments, collect_moments
from cleanai_ray.sensitivity import (
    CandidateScorer,
    measure_curves,
    probe_images,
    reading_features,
    search_images,
)
from cleanai_ray.sensitivity.candidates import MAX_SEARCH_IMAGES
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
    """

    statistics: ActivationStatistics | None = None
    moments: ConsumerMoments | None = None
    curves: SensitivityCurves | None = None
    allocations: Mapping[str, Allocation] = field(default_factory=dict)


def measures_folder(study: Study, draw: CalibrationDraw) -> str:
    """Return the folder of a run directory that keeps the measurements of one draw."""
    return "cache" if len(study.draws()) == 1 else f"cache/{draw.name}"


def needs_statistics(study: Study) -> bool:
    """Return whether any method of a study reads activations or gradients."""
    return methods_need(study, "needs_statistics")


def needs_moments(study: Study) -> bool:
    """Return whether any trial of a study reads second moments."""
    return needs_curves(study) or study.repair.compensation in ("closed_form", "auto")


def needs_curves(study: Study) -> bool:
    """Return whether any method of a study reads sensitivity curves."""
    return methods_need(study, "needs_curves")


def moment_shards(workspace: Workspace) -> list[np.ndarray]:
    """Return the positions, among the calibration samples, of each shard of the second moments.

    Every fifth image is left out, so that repair and sensitivity can be judged on images they were not fitted to. The
    moments are the same whichever trials read them.
    """
    calibration = workspace.study.data.calibration
    positions = np.arange(min(calibration.second_moment_samples, len(workspace.roles.calibration)))
    positions = workspace.in_reading_order(positions[~is_held_back(positions)])
    size = calibration.shard_size
    return [positions[start : start + size] for start in range(0, len(positions), size)]


class MomentCollector:
    """Collects the second moments of shards; the graph of the model is traced once.

    The moments of a ResNet-50 take 96 MB when a shard is sent: the upper triangles, float64.

    Args:
        workspace: The opened study.
        model: The dense model on the workspace's device; it is not changed.
    """

    def __init__(self, workspace: Workspace, model: nn.Module) -> None:
        self._workspace = workspace
        self._model = open_attention(model)
        self._features = reading_features(_graph(workspace, self._model))
        self._shards = moment_shards(workspace)

    def num_samples(self, number: int) -> int:
        """Return the number of images of one shard."""
        return len(self._shards[number])

    def shard(self, number: int) -> ConsumerMoments:
        """Return the moments of one shard."""
        return collect_moments(
            self._model,
            self._workspace.batches("calibration", positions=self._shards[number]),
            layers=list(self._features),
            features=self._features,
            positions_per_sample=self._workspace.study.data.calibration.positions_per_sample,
            first_sample_id=sum(len(shard) for shard in self._shards[:number]),
        )


def measure_study_curves(workspace: Workspace, model: nn.Module, moments: ConsumerMoments) -> SensitivityCurves:
    """Return the sensitivity curves of a study's dense model; outputs are compared on the images held back."""
    _, held = _split(workspace)
    return measure_curves(_graph(workspace, model), moments, probe_images(_images(workspace, held)))


def study_candidates(workspace: Workspace, model: nn.Module, measures: DenseMeasures) -> CandidateScorer:
    """Return the scorer of a search for allocations; its result is judged on the images that gave no moments."""
    assert measures.curves is not None
    assert measures.moments is not None
    working, held = _split(workspace)
    images = search_images(_images(workspace, working[:MAX_SEARCH_IMAGES]))
    judges = probe_images(_images(workspace, held))
    return CandidateScorer(_graph(workspace, model), measures.curves, measures.moments, images, judges)


def _split(workspace: Workspace) -> tuple[np.ndarray, np.ndarray]:
    """Return the positions of the calibration images that give second moments, and of those held back."""
    limit = workspace.study.data.calibration.second_moment_samples
    positions = np.arange(min(limit, len(workspace.roles.calibration)))
    is_held = is_held_back(positions)
    held = positions[is_held] if is_held.any() else positions
    return positions[~is_held], held


def _images(workspace: Workspace, positions: np.ndarray) -> list[Tensor]:
    return [images for images, _ in workspace.batches("calibration", positions=positions)]


def _graph(workspace: Workspace, model: nn.Module) -> ChannelGraph:
    ignored = [*workspace.study.pruning.ignored_layers, *workspace.ignored_layers()]
    return ChannelGraph(model, workspace.example_input(), ignored)
