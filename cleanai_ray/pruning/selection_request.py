"""The amount that a selection removes, and its bounds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from cleanai_ray.pruning.granularity import Granularity


@dataclass(frozen=True, kw_only=True)
class SelectionRequest:
    """The amount to remove, relative to the dense model.

    Attributes:
        mode: `local` (each group by itself), `global` (all groups ranked together) or `isomorphic` (groups of the same
            structure ranked together; Fang et al. 2024, arXiv:2407.04616).
        ratio: Share of channels to remove; ignored if `limit` is given.
        limit: Cost that the model may have, in the unit of the cost function.
        unit: Unit of the cost in messages, for instance " MB".
        layer_ratios: Channel ratio by module-name prefix; such groups are ranked by themselves.
        equal: Names of groups that stay equally wide, for each kind of such groups.
        max_ratio: No group loses more than this share of its dense channels.
        min_channels: No group keeps fewer.
        granularity: Widths of pruned groups are multiples of its steps, if the group is wide enough; None: any.
        must_remove: True to halve an automatic multiple until a ratio removes something.
        by_time: True if the limit is one of predicted time, which falls in stairs: see `time_selection`.
    """

    mode: str = "local"
    ratio: float | None = None
    limit: float | None = None
    unit: str = ""
    layer_ratios: Mapping[str, float] = field(default_factory=dict)
    equal: tuple[tuple[str, ...], ...] = ()
    max_ratio: float = 0.9
    min_channels: int = 1
    granularity: Granularity | None = None
    by_time: bool = False
    must_remove: bool = False
