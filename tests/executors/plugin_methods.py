"""Importance methods that go wrong, as a plugin module of a study."""

from __future__ import annotations

import os

from torch import Tensor

from cleanai_ray.graph.graph import ChannelGroup
from cleanai_ray.importance.base import ImportanceMethod, ScoringContext
from cleanai_ray.registry import METHODS


@METHODS.register("refusing")
class Refusing(ImportanceMethod):
    """Raises."""

    def score(self, group: ChannelGroup, context: ScoringContext) -> Tensor:
        raise ValueError(f"no score for {group.name}")


@METHODS.register("dying")
class Dying(ImportanceMethod):
    """Takes its process with it."""

    def score(self, group: ChannelGroup, context: ScoringContext) -> Tensor:
        os._exit(3)
