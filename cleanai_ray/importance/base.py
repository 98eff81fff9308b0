"""The base class of importance methods, and the way from values per layer to scores of a dependency group."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from cleanai_ray.errors import PruningError, StudyError
from cleanai_ray.graph.graph import ChannelGraph, ChannelGroup
from cleanai_ray.graph.group import Member
from cleanai_ray.importance.curves import SensitivityCurves
from cleanai_ray.registry import METHODS
from cleanai_ray.statistics import ActivationStatistics, LayerStatistics

_WITHOUT_WEIGHTS = ("HeadProduct",)


@dataclass(frozen=True, kw_only=True, eq=False)
class ScoringContext:
    """Everything that a method may read.

    Attributes:
        graph: The dependency graph, with the model at its present width.
        statistics: Activation statistics of the present model's channels; None if the method needs none.
        coverage_metric: The coverage metric of the trial, for methods that use one.
        observe: The statistics that coverage is derived from: `activation` or `output`.
        seed: Seed of the trial.
        curves: Sensitivity curves of the dense model; None if the method needs none.
    """

    graph: ChannelGraph
    statistics: ActivationStatistics | None = None
    coverage_metric: str | None = None
    observe: str = "activation"
    seed: int = 0
    curves: SensitivityCurves | None = None


class ImportanceMethod(ABC):
    """Scores the channels of dependency groups. Options are keyword arguments of the constructor.

    Class attributes say what a method needs. If options decide, the constructor sets them, so read them from a method
    that `create_method` returned, not from its class.

    Attributes:
        uses_coverage_metric: True if a study runs the method once for each of `sweep.coverage_metrics`.
        needs_activations: True if it reads activation statistics.
        needs_outputs: True if it reads statistics of what layers compute, and not only of what they receive.
        needs_gradients: True if it reads the magnitudes of gradients, which calibration can collect.
        needs_squared_gradients: True if it reads the squares of gradients, which calibration can collect. A method can
            read only one of the two.
        needs_curves: True if it reads the sensitivity curves of the dense model.
        remeasures: True if calibration is repeated on the smaller network before every step but the first.
        comparable: True if scores of different groups are on one scale already, and must not be normalised.
        search: Number of allocations of a budget over groups that are tried, each repaired and compared with the dense
            model; 0: none. A method with a search needs curves, since each group loses its units in their order.
    """

    uses_coverage_metric: bool = False
    needs_activations: bool = False
    needs_outputs: bool = False
    needs_gradients: bool = False
    needs_squared_gradients: bool = False
    needs_curves: bool = False
    remeasures: bool = False
    comparable: bool = False
    search: int = 0

    @property
    def needs_statistics(self) -> bool:
        """True if the method reads activations or gradients, which calibration collects."""
        return self.needs_activations or self.needs_gradients or self.needs_squared_gradients

    @property
    def reads_data(self) -> bool:
        """True if the plan depends on calibration data. A method that reads images in a way of its own overrides it."""
        return self.needs_statistics or self.needs_curves or self.remeasures

    @abstractmethod
    def score(self, group: ChannelGroup, context: ScoringContext) -> Tensor:
        """Return the importance of each channel of a group: float64 of shape [num_channels], high = keep."""

    def prices(self, group: ChannelGroup, context: ScoringContext) -> np.ndarray | None:
        """Return the price of removing each of the group's units, one after another in the order of their scores.

        Prices are comparable between groups, so that a budget is met by the removals with the lowest price per saving.
        None, the default, means that the method has only scores.
        """
        return None


def create_method(name: str, options: dict[str, object] | None = None) -> ImportanceMethod:
    """Return a method by its name.

    Raises:
        RegistryError: When the name is unknown.
        StudyError: When an option does not fit the method.
    """
    try:
        return METHODS.get(name)(**(options or {}))
    except (TypeError, ValueError) as error:
        raise StudyError(f"options of method '{name}': {error}") from error


def give_gradients(graph: ChannelGraph, method: ImportanceMethod, statistics: ActivationStatistics) -> None:
    """Give the parameters of a graph's model the gradients that a method reads, as means over the samples."""
    if method.needs_gradients:
        graph.set_gradients(statistics.gradients, statistics.num_gradient_samples)
    elif method.needs_squared_gradients:
        graph.set_gradients(statistics.squared_gradients, statistics.num_gradient_samples)


def score_groups(method: ImportanceMethod, context: ScoringContext) -> dict[str, Tensor]:
    """Score every group of the graph, and divide each group's scores by their mean, as torch-pruning does by default.

    Scores that are comparable already are not divided, nor are those of a group that are all zero.

    Returns:
        Scores of shape [num_channels] by group name.

    Raises:
        PruningError: When scores are missing, of another length, or not finite.
    """
    scores = {}
    for group in context.graph.groups:
        score = method.score(group, context).detach().double().cpu()
        if score.shape != (group.num_channels,):
            raise PruningError(
                f"{type(method).__name__} returned scores of shape {tuple(score.shape)} for the group of layer "
                f"'{group.name}'; allowed: ({group.num_channels},)"
            )
        if not torch.isfinite(score).all():
            name = type(method).__name__
            raise PruningError(f"{name} gave the group of layer '{group.name}' a score that is not finite")
        mean = score.mean()
        scores[group.name] = score / mean if mean > 0 and not method.comparable else score
    return scores


def price_groups(method: ImportanceMethod, context: ScoringContext) -> dict[str, np.ndarray] | None:
    """Return the prices of every group by name; None if the method has none."""
    found = {group.name: method.prices(group, context) for group in context.graph.groups}
    prices = {name: values for name, values in found.items() if values is not None}
    return prices if len(prices) == len(found) else None


def readers(group: ChannelGroup) -> list[Member]:
    """Return the layers that read the channels; depthwise convolutions pass them on.

    These are Conv2d, Linear and attention layers. Query and key dimensions are read where they pass by.
    """
    if all(member.side != "in" or member.type in _WITHOUT_WEIGHTS for member in group.members):
        passing = [member for member in group.members if member.type == "HeadChannels"]
        if passing:
            return passing
    return [
        member
        for member in group.members
        if (member.side == "in" and member.type not in _WITHOUT_WEIGHTS) or member.type == "MultiheadAttention"
    ]


def producers(group: ChannelGroup) -> list[Member]:
    """Return the Conv2d and Linear layers that compute the group's channels."""
    return [member for member in group.members if member.side == "out" and member.type not in _WITHOUT_WEIGHTS]


def average_over_layers(
    group: ChannelGroup,
    layers: list[Member],
    values: Callable[[Member], Tensor | None],
    *,
    reduce: str,
) -> Tensor:
    """Map the values of each layer to the group's channels, and average over the layers.

    Args:
        group: The group.
        layers: Members to read.
        values: Returns a member's value for every index of its layer's dimension, [C of the layer], or None to leave
            it out.
        reduce: How to combine several indices of one channel (in a flattened input): `mean` or `sum`.

    Raises:
        PruningError: When no layer has a value for some channel of the group.
    """
    total = torch.zeros(group.num_channels, dtype=torch.float64)
    layers_seen = torch.zeros_like(total)
    for member in layers:
        value = values(member)
        if value is None:
            continue
        roots = torch.as_tensor(member.roots)
        mapped = torch.zeros_like(total).scatter_add_(0, roots, value.double().cpu()[torch.as_tensor(member.channels)])
        count = torch.zeros_like(total).scatter_add_(0, roots, torch.ones(len(roots), dtype=torch.float64))
        total += mapped / count.clamp_min(1) if reduce == "mean" else mapped
        layers_seen += count > 0
    if (layers_seen == 0).any():
        raise PruningError(
            f"there are no activation statistics for the group of layer '{group.name}'; add the layer to "
            "ignored_layers, or choose a method that needs none"
        )
    return total / layers_seen


def statistics_of(context: ScoringContext, member: Member, side: str) -> LayerStatistics | None:
    """Return a layer's statistics, checked against the layer's present width.

    Raises:
        PruningError: When there are no statistics at all, or they were taken at another width.
    """
    if context.statistics is None:
        raise PruningError("the method reads activation statistics, and none were given; pass batches or stats")
    found = (context.statistics.inputs if side == "inputs" else context.statistics.outputs).get(member.layer)
    width = context.graph.width(member.layer, "in" if side == "inputs" else "out")
    if found is not None and found.num_channels != width:
        raise PruningError(
            f"the statistics of layer '{member.layer}' have {found.num_channels} channels, and the layer has "
            f"{width}; they were taken from another model"
        )
    return found
