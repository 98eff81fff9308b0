"""Scores of allocations: each candidate is cut, compensated in closed form and compared with the dense model."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from cleanai_ray.graph.graph import ChannelGraph
from cleanai_ray.importance.curves import SensitivityCurves
from cleanai_ray.repair.auto import divergence, log_probabilities, split_images
from cleanai_ray.repair.compensation import compensate_closed_form
from cleanai_ray.repair.images import Batch, device_of, read_images
from cleanai_ray.repair.moments import ConsumerMoments, collect_moments
from cleanai_ray.repair.pair import ModelPair
from cleanai_ray.repair.trace import trace_consumers
from cleanai_ray.sensitivity.profile import probe_images, reading_features


class CandidateScorer:
    """Scores allocations by the mean KL(dense || pruned and compensated) on images; no labels are used.

    Candidates are really cut. A model that only masks its removed channels gives the same outputs without a trace of
    the graph (0.1 seconds for a ResNet-20), but not across layer norms, and it takes as long as the dense model to run,
    which is more than what it saves.

    Args:
        graph: The graph of the dense model, at full width; it is left as it is.
        curves: The order in which each group loses its units.
        moments: Moments of what the consumers read, for the features of `reading_features`.
        images: Images to compare outputs on, in batches; best such that the moments were not taken from.
        ridge: Regularisation of the compensation, as a share of the mean variance.
    """

    def __init__(
        self,
        graph: ChannelGraph,
        curves: SensitivityCurves,
        moments: ConsumerMoments,
        images: Sequence[Tensor],
        *,
        ridge: float = 1e-3,
    ) -> None:
        self._graph = graph
        self._groups = {group.name: group for group in graph.groups}
        self._curves = curves
        self._moments = moments
        self._images = torch.cat(list(images))
        self._batch_size = max(len(batch) for batch in images)
        self._ridge = ridge
        self._reference = log_probabilities(graph.model, self._batches(len(self._images)))

    def __call__(self, candidates: Sequence[Mapping[str, int]], share: float = 1.0) -> list[float]:
        """Return the score of each candidate, in nats.

        Args:
            candidates: Units that each group loses.
            share: Share of the images to compare on, from the first one on.
        """
        return [self.score(candidate, share) for candidate in candidates]

    def score(self, candidate: Mapping[str, int], share: float = 1.0) -> float:
        """Return the score of one candidate."""
        number = max(1, math.ceil(share * len(self._images)))
        outputs = log_probabilities(self.compensated(candidate), self._batches(number))
        return divergence(self._reference[: len(outputs)], outputs)

    def compensated(self, candidate: Mapping[str, int]) -> nn.Module:
        """Return the model that is left of the dense one, compensated in closed form."""
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
        consumers = trace_consumers(smaller.model, self._images[:1].to(device_of(smaller.model)))
        compensate_closed_form(pair, self._moments, consumers, ridge=self._ridge)
        return smaller.model

    def _batches(self, number: int) -> list[Tensor]:
        return list(self._images[:number].split(self._batch_size))


def score_candidates(
    model: nn.Module,
    example_inputs: Tensor | tuple[Tensor, ...],
    batches: Iterable[Batch],
    curves: SensitivityCurves,
    *,
    ignored_layers: Sequence[str] = (),
) -> CandidateScorer:
    """Return a scorer of a model's candidates: four fifths of the images give the moments, the rest judge.

    Args:
        model: The dense model.
        example_inputs: One input batch, or a tuple that holds just it, on the model's device.
        batches: Calibration inputs [N, ...] or (inputs, targets).
        curves: Sensitivity curves of the model, with the same ignored layers.
        ignored_layers: Module names that keep their output width, with all below them.

    Raises:
        PruningError: When the model cannot be traced.
        CalibrationError: When there are no images, or a batch cannot be run.
    """
    graph = ChannelGraph(model, example_inputs, ignored_layers)
    working, held = split_images(read_images(batches))
    features = reading_features(graph)
    moments = collect_moments(graph.model, working or held, layers=list(features), features=features)
    return CandidateScorer(graph, curves, moments, probe_images(held or working))
