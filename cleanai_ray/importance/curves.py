"""The cost of removing a group's channels one after another: the order and the error curve of every group."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass

import numpy as np

from cleanai_ray.errors import ArtifactError, PruningError

_EXPONENT = 1.5
_LEAST = 1e-12
_FORMAT = "cleanai-curves/1"


@dataclass(frozen=True, kw_only=True)
class GroupCurve:
    """The backward elimination of one dependency group.

    A unit is removed at once: one channel, or one position of every block if the group has blocks, or a head.

    Attributes:
        name: Name of the group.
        num_channels: Channels of the group in the dense model.
        num_blocks: Equal blocks that must stay equally wide.
        order: Units in the order of their removal; the last one stays, and is not in it.
        errors: Relative squared error of what the group's consumers compute, summed over them, after each removal.
        probes: Measurements of what the group does to the model's output: (number of units removed from this group
            alone, after compensation; mean KL(dense || model) in nats), ascending; empty if there are none.
        whole_heads: True if a unit is a head, which is `num_blocks` adjacent channels.
        estimated: The reason why errors and probes (or the probes alone) are estimates from the curves of neighbouring
            groups; None if they were measured.
    """

    name: str
    num_channels: int
    num_blocks: int
    order: tuple[int, ...]
    errors: tuple[float, ...]
    probes: tuple[tuple[int, float], ...] = ()
    whole_heads: bool = False
    estimated: str | None = None

    @property
    def num_units(self) -> int:
        """Units of the group in the dense model."""
        return self.num_channels // self.num_blocks

    @property
    def harm(self) -> np.ndarray:
        """The KL of the model's output after each removal, comparable between groups, [num_units - 1].

        Between probes it is linear in the error. Beyond the last one it follows the tangent of error^1.5, which is
        roughly how networks behave. Without probes it is error^1.5. It never falls.
        """
        errors = np.maximum.accumulate(np.asarray(self.errors))
        if not self.probes:
            return errors**_EXPONENT
        numbers, divergences = (np.asarray(column) for column in zip(*self.probes, strict=True))
        known, first = np.unique(errors[numbers.astype(np.int64) - 1], return_index=True)
        values = np.maximum.accumulate(divergences)[first]
        inside = np.interp(errors, [0.0, *known], [0.0, *values])
        slope = _EXPONENT * values[-1] / max(known[-1], _LEAST)
        return inside + slope * np.maximum(errors - known[-1], 0)

    def ranks(self, kept: np.ndarray) -> np.ndarray:
        """Return the place in `order` of each of the group's present units; the one that stays comes last.

        Args:
            kept: Dense indices of the channels the group still has, ascending.
        """
        place = {unit: rank for rank, unit in enumerate(self.order)}
        units = np.unique(kept // self.num_blocks) if self.whole_heads else kept[kept < self.num_units]
        return np.asarray([place.get(unit, len(self.order)) for unit in units.tolist()], dtype=np.int64)

    def prices(self, kept: np.ndarray) -> np.ndarray:
        """Return the harm that each of the remaining removals adds, in their order.

        Args:
            kept: Dense indices of the channels the group still has, ascending.
        """
        ranks = np.sort(self.ranks(kept))
        harm = np.concatenate([[0.0], self.harm])
        before = ranks[0] if len(ranks) else 0
        return np.diff(harm[[before, *(ranks[:-1] + 1)]])

    def __repr__(self) -> str:
        return f"GroupCurve({self.name}: {self.num_units} units, {len(self.probes)} probes)"


@dataclass(frozen=True, kw_only=True)
class SensitivityCurves:
    """The curves of all groups of a model.

    Attributes:
        groups: By group name.
    """

    groups: Mapping[str, GroupCurve]

    def __getitem__(self, name: str) -> GroupCurve:
        if name not in self.groups:
            raise PruningError(f"there is no sensitivity curve for the group of layer '{name}'")
        return self.groups[name]

    @property
    def notes(self) -> tuple[str, ...]:
        """A sentence for each group whose curve was not measured."""
        return tuple(
            f"the sensitivity of layer '{curve.name}' is estimated from its neighbours': {curve.estimated}"
            for curve in self.groups.values()
            if curve.estimated is not None
        )

    def __repr__(self) -> str:
        return f"SensitivityCurves({len(self.groups)} groups, {len(self.notes)} of them estimated)"

    def to_json(self) -> str:
        """Return the curves as a JSON document."""
        return json.dumps({"format": _FORMAT, "groups": [asdict(curve) for curve in self.groups.values()]}) + "\n"

    @staticmethod
    def from_json(text: str) -> SensitivityCurves:
        """Restore what `to_json` wrote.

        Raises:
            ArtifactError: When the text is something else.
        """
        try:
            document = json.loads(text)
            if document["format"] != _FORMAT:
                raise ValueError(f"its format is {document['format']}")
            curves = [
                GroupCurve(
                    **{
                        **group,
                        "order": tuple(group["order"]),
                        "errors": tuple(group["errors"]),
                        "probes": tuple((number, value) for number, value in group["probes"]),
                    }
                )
                for group in document["groups"]
            ]
        except (ValueError, KeyError, TypeError) as error:
            raise ArtifactError(f"sensitivity curves cannot be read: {error} (expected {_FORMAT})") from error
        return SensitivityCurves(groups={curve.name: curve for curve in curves})
