"""Scores of allocations: each candidate is cut, repaired in closed form and compared with the dense model."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from cleanai_ray.errors import CleanAIError
from cleanai_ray.graph.graph import ChannelGraph
from cleanai_ray.importance.curves import SensitivityCurves
from cleanai_ray.pruning.allocation import Images
from cleanai_ray.repair.auto import split_images
from cleanai_ray.repair.batch_norm import apply_relative, collect_norm_sums
from cleanai_ray.repair.compensation import compensate_closed_form
from cleanai_ray.repair.images import Batch, device_of, read_images
from cleanai_ray.repair.moments import ConsumerMoments, collect_moments
from cleanai_ray.repair.outputs import divergence, log_probabilities
from cleanai_ray.repair.pair import ModelPair
from cleanai_ray.repair.trace import trace_consumers
from cleanai_ray.sensitivity.profile import probe_images
from cleanai_ray.sensitivity.readings import reading_features

MAX_SEARCH_IMAGES = 1024
_ROUNDS = 4
"""All images to search with are this many times as many as those of the first round."""
_NORM_IMAGES = 256
"""Images that batch-norms are recalibrated with."""


class CandidateScorer:
    """Scores allocations by the mean KL(dense || pruned and repaired) on images; no labels are used.

    Repair is the compensation in closed form, then the recalibration of batch-norms relative to the dense model's.
    Without the latter, the search would spend its budget on errors of scale, which every repair removes anyway.

    Candidates are really cut. A model that only masks its removed channels gives the same outputs without a trace of
    the graph (0.1 seconds for a ResNet-20), but not across layer norms, and it takes as long as the dense model to run,
    which is more than what it saves.

    Args:
        graph: The graph of the dense model, at full width; it is left as it is.
        curves: The order in which each group loses its units.
        moments: Moments of what the consumers read, for the features of `reading_features`.
        images: Images to search with, in batches.
        held_back: Images to judge the result of a search by, in batches; none that the moments were taken from.
        ridge: Regularisation of the compensation, as a share of the mean variance.
    """

    def __init__(
        self,
        graph: ChannelGraph,
        curves: SensitivityCurves,
        moments: ConsumerMoments,
        images: Sequence[Tensor],
        held_back: Sequence[Tensor],
        *,
        ridge: float = 1e-3,
    ) -> None:
        self._graph = graph
        self._groups = {group.name: group for group in graph.groups}
        self._curves = curves
        self._moments = moments
        some = torch.cat(list(images))[: math.ceil(sum(len(batch) for batch in images) / _ROUNDS)]
        self._images: dict[Images, list[Tensor]] = {
            "some": list(some.split(max(len(batch) for batch in images))),
            "all": list(images),
            "held_back": list(held_back),
        }
        self._ridge = ridge
        normed = torch.cat(list(images))[:_NORM_IMAGES]
        self._norm_images = list(normed.split(max(len(batch) for batch in images)))
        self._norm_sums = collect_norm_sums(graph.model, self._norm_images)
        self._references = {name: log_probabilities(graph.model, found) for name, found in self._images.items()}

    def __call__(self, candidates: Sequence[Mapping[str, int]], images: Images) -> list[float]:
        """Return the score of each candidate, in nats.

        Args:
            candidates: Units that each group loses.
            images: The images to compare on.
        """
        return [self.score(candidate, images) for candidate in candidates]

    def score(self, candidate: Mapping[str, int], images: Images) -> float:
        """Return the score of one candidate, in nats; infinite where it cannot be cut or repaired."""
        try:
            outputs = log_probabilities(self.repaired(candidate), self._images[images])
        except (CleanAIError, torch.linalg.LinAlgError):
            return math.inf
        return divergence(self._references[images], outputs)

    def repaired(self, candidate: Mapping[str, int]) -> nn.Module:
        """Return the model that is left of the dense one, repaired in closed form."""
        removed = {
            name: self._groups[name].expand(np.asarray(self._curves[name].order[:count]))
            for name, count in candidate.items()
            if count
        }
        smaller = self._graph.rebuild(self._graph.model)
        smaller.remove(removed)
        pair = ModelPair(
            dense=self._graph.model,
            pruned=smaller.model,
            kept_inputs=smaller.kept("in"),
            kept_outputs=smaller.kept("out"),
        )
        consumers = trace_consumers(smaller.model, self._images["all"][0][:1].to(device_of(smaller.model)))
        compensate_closed_form(pair, self._moments, consumers, ridge=self._ridge)
        if self._norm_sums:
            found = collect_norm_sums(smaller.model, self._norm_images)
            apply_relative(pair.dense, smaller.model, self._norm_sums, found, pair.kept_outputs)
        return smaller.model


def score_candidates(
    model: nn.Module,
    example_inputs: Tensor | tuple[Tensor, ...],
    batches: Iterable[Batch],
    curves: SensitivityCurves,
    *,
    ignored_layers: Sequence[str] = (),
    check: bool = True,
) -> CandidateScorer:
    """Return a scorer of a model's candidates: four fifths of the images search, the rest judge.

    Args:
        model: The dense model.
        example_inputs: One input batch, or a tuple that holds just it, on the model's device.
        batches: Calibration inputs [N, ...] or (inputs, targets).
        curves: Sensitivity curves of the model, with the same ignored layers.
        ignored_layers: Module names that keep their output width, with all below them.
        check: Whether each group is tried before it is narrowed, as when the curves were measured.

    Raises:
        PruningError: When the model cannot be traced.
        CalibrationError: When there are no images, or a batch cannot be run.
    """
    graph = ChannelGraph(model, example_inputs, ignored_layers, check=check)
    working, held = split_images(read_images(batches))
    features = reading_features(graph)
    moments = collect_moments(graph.model, working or held, layers=list(features), features=features)
    return CandidateScorer(graph, curves, moments, search_images(working or held), probe_images(held or working))


def search_images(images: Sequence[Tensor]) -> list[Tensor]:
    """Return the first MAX_SEARCH_IMAGES images, in batches."""
    size = max(len(batch) for batch in images)
    return list(torch.cat(list(images))[:MAX_SEARCH_IMAGES].split(size))
